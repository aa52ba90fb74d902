// Package tlsfiles makes the TLS of page servers and their clients: version
// 1.3, certificates on both sides, from files that may be replaced at any time.
// A file that has changed is read again before the next handshake; if it cannot
// be, what was read before stays in use.
//
// It is a package of its own because crypto/tls takes more time to initialise
// than a restore has.
package tlsfiles

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// Files are PEM files.
type Files struct {
	CACert string // certificates of the authorities that sign the other side's certificates
	Cert   string // our certificate, with those between it and the authority
	Key    string // its private key
}

// A Pair is what Files hold, read again when they change. Its methods may be
// called concurrently.
type Pair struct {
	files Files
	log   *slog.Logger

	mu    sync.Mutex
	seen  [3]stamp         // under mu: of the files, when they were looked at last
	ca    *x509.CertPool   // under mu; never changed, only replaced
	certs *tls.Certificate // under mu; the same
}

// A stamp changes when a file is replaced or written to.
type stamp struct {
	size  int64
	mtime time.Time
	inode uint64
}

// Open reads the files. What goes wrong when they are read again is logged.
func Open(files Files, log *slog.Logger) (*Pair, error) {
	p := &Pair{files: files, log: log}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = p.stamps()
	return p, p.read()
}

// Server is the configuration of a server: clients have to show a certificate
// of the authorities.
func (p *Pair) Server() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			ca, cert := p.current()
			return &tls.Config{
				MinVersion:   tls.VersionTLS13,
				Certificates: []tls.Certificate{*cert},
				ClientAuth:   tls.RequireAndVerifyClientCert,
				ClientCAs:    ca,
			}, nil
		},
	}
}

// Client is the configuration for one connection to a server, whose certificate
// has to be one of the authorities, for that name or address.
func (p *Pair) Client(name string) *tls.Config {
	ca, cert := p.current()
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{*cert},
		RootCAs:      ca,
		ServerName:   name,
	}
}

// current is what the files hold, or held when they could last be read.
func (p *Pair) current() (*x509.CertPool, *tls.Certificate) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := p.stamps(); now != p.seen {
		p.seen = now
		if err := p.read(); err != nil {
			p.log.Error("certificates not read again; the old ones stay in use", "error", err)
		} else {
			p.log.Info("certificates read again", "certificate", p.files.Cert)
		}
	}
	return p.ca, p.certs
}

// stamps look at the files.
func (p *Pair) stamps() (s [3]stamp) {
	for i, path := range []string{p.files.CACert, p.files.Cert, p.files.Key} {
		if fi, err := os.Stat(path); err == nil {
			s[i] = stamp{size: fi.Size(), mtime: fi.ModTime(), inode: inode(fi)}
		}
	}
	return s
}

var errNoCertificate = errors.New("no certificate in it")

// read reads the files. p.mu is held.
func (p *Pair) read() error {
	b, err := os.ReadFile(p.files.CACert)
	if err != nil {
		return err
	}
	ca := x509.NewCertPool()
	if !ca.AppendCertsFromPEM(b) {
		return fmt.Errorf("%s: %w", p.files.CACert, errNoCertificate)
	}
	cert, err := tls.LoadX509KeyPair(p.files.Cert, p.files.Key)
	if err != nil {
		return fmt.Errorf("certificate %s and key %s: %w", p.files.Cert, p.files.Key, err)
	}
	p.ca, p.certs = ca, &cert
	return nil
}
