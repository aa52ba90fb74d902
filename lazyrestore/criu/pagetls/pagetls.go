// Package pagetls is the TLS of CRIU's page transfer (--tls): both sides show a
// certificate, which one authority has to have signed, right after the
// connection is made. It makes configurations of crypto/tls, which nothing on
// the way of a native restore may link.
package pagetls

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"slices"
	"strings"
)

// Where CRIU looks for what is not named.
const (
	DefaultCACert = "/etc/pki/CA/cacert.pem"
	DefaultCACRL  = "/etc/pki/CA/cacrl.pem" // it may be missing
	DefaultCert   = "/etc/pki/criu/cert.pem"
	DefaultKey    = "/etc/pki/criu/private/key.pem"
)

// Options name PEM files; an empty name is CRIU's default.
type Options struct {
	CACert string // the authorities that are trusted
	CACRL  string // certificates that they took back: lists, each by one of them
	Cert   string // our own certificate
	Key    string // and its key
	NoName bool   // a client does not compare the server's name with the address
}

var (
	errNoPEM   = errors.New("no PEM certificate in it")
	errRevoked = errors.New("certificate has been revoked")
	errList    = errors.New("a list in it is damaged")
	errSigner  = errors.New("none of the authorities has signed it")
	errNobody  = errors.New("the peer showed no certificate")
)

// Server is the configuration of a page server.
func (o Options) Server() (*tls.Config, error) {
	v, cert, err := o.load()
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert},
		// Checked by VerifyConnection: what a certificate is for does not
		// matter to CRIU, which uses one for both sides.
		ClientAuth: tls.RequireAnyClientCert,
		// CRIU takes a ticket that comes after the handshake for an error.
		SessionTicketsDisabled: true,
		VerifyConnection:       func(c tls.ConnectionState) error { return v.check(c, "") },
	}, nil
}

// Client is the configuration of who connects to a page server at host, a
// name or an address.
func (o Options) Client(host string) (*tls.Config, error) {
	v, cert, err := o.load()
	if err != nil {
		return nil, err
	}
	name := host
	if o.NoName {
		name = ""
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, ServerName: host,
		InsecureSkipVerify: true, // VerifyConnection does it
		VerifyConnection:   func(c tls.ConnectionState) error { return v.check(c, name) },
	}, nil
}

// A verifier decides whom to trust.
type verifier struct {
	roots   *x509.CertPool
	revoked map[serial]bool
}

// A serial is a certificate's number, which tells it from others of its issuer only. The issuer
// is known by its name, as in RFC 5280 and to GnuTLS: the list that an authority signs with a
// new key is also about what it issued with the old one.
type serial struct{ issuer, number string }

func serialOf(issuer []byte, number *big.Int) serial {
	return serial{string(issuer), number.String()}
}

// load reads the files.
func (o Options) load() (*verifier, tls.Certificate, error) {
	var none tls.Certificate
	cas, err := certificates(or(o.CACert, DefaultCACert))
	if err != nil {
		return nil, none, fmt.Errorf("authorities for TLS (--tls-cacert): %w", err)
	}
	v := &verifier{roots: x509.NewCertPool(), revoked: map[serial]bool{}}
	for _, c := range cas {
		v.roots.AddCert(c)
	}
	if err := v.loadRevoked(o.CACRL, cas); err != nil {
		return nil, none, fmt.Errorf("revoked certificates for TLS (--tls-cacrl): %w", err)
	}
	cert, err := tls.LoadX509KeyPair(or(o.Cert, DefaultCert), or(o.Key, DefaultKey))
	if err != nil {
		return nil, none, fmt.Errorf("certificate and key for TLS (--tls-cert, --tls-key): %w", err)
	}
	return v, cert, nil
}

func or(name, otherwise string) string {
	if name == "" {
		return otherwise
	}
	return name
}

func certificates(name string) ([]*x509.Certificate, error) {
	rest, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var all []*x509.Certificate
	for block, rest := pem.Decode(rest); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: %w", name, errNoPEM)
	}
	return all, nil
}

// loadRevoked reads lists of revoked certificates, each of which one of the
// authorities has to have signed. Only the default file may be missing.
func (v *verifier) loadRevoked(name string, cas []*x509.Certificate) error {
	b, err := os.ReadFile(or(name, DefaultCACRL))
	if errors.Is(err, fs.ErrNotExist) && name == "" {
		return nil
	}
	if err != nil {
		return err
	}
	lists, err := listsIn(b)
	for i := 0; err == nil && i < len(lists); i++ {
		err = v.addRevoked(lists[i], cas)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", or(name, DefaultCACRL), err)
	}
	return nil
}

// listsIn takes the content of a file apart: one list after another in PEM, or one in DER.
func listsIn(b []byte) ([][]byte, error) {
	begun := bytes.Count(b, []byte("-----BEGIN "))
	if begun == 0 {
		return [][]byte{bytes.TrimSpace(b)}, nil
	}
	var lists [][]byte
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		lists = append(lists, block.Bytes)
	}
	if len(lists) != begun {
		return nil, errList // Decode passes by what it cannot read
	}
	return lists, nil
}

// addRevoked notes what is in one list.
func (v *verifier) addRevoked(der []byte, cas []*x509.Certificate) error {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return err
	}
	// CheckSignatureFrom does not compare the names.
	if !slices.ContainsFunc(cas, func(ca *x509.Certificate) bool {
		return bytes.Equal(list.RawIssuer, ca.RawSubject) && list.CheckSignatureFrom(ca) == nil
	}) {
		return errSigner
	}
	for _, e := range list.RevokedCertificateEntries {
		v.revoked[serialOf(list.RawIssuer, e.SerialNumber)] = true
	}
	return nil
}

// check decides about a peer, whose name has to be the one given, if one is.
func (v *verifier) check(c tls.ConnectionState, name string) error {
	if len(c.PeerCertificates) == 0 {
		return errNobody
	}
	peer := c.PeerCertificates[0]
	opts := x509.VerifyOptions{Roots: v.roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	for _, i := range c.PeerCertificates[1:] {
		opts.Intermediates.AddCert(i)
	}
	chains, err := peer.Verify(opts)
	if err != nil {
		return err
	}
	if !v.anyValid(chains) {
		return fmt.Errorf("%s: %w", peer.Subject, errRevoked)
	}
	if name == "" {
		return nil
	}
	return checkName(peer, name)
}

// anyValid reports whether a chain has no revoked certificate in it.
func (v *verifier) anyValid(chains [][]*x509.Certificate) bool {
	for _, chain := range chains {
		// The last as well: it is trusted, but another authority may have issued it.
		if !slices.ContainsFunc(chain, func(c *x509.Certificate) bool {
			return v.revoked[serialOf(c.RawIssuer, c.SerialNumber)]
		}) {
			return true
		}
	}
	return false
}

// checkName compares a certificate with the name or address of the server. As
// with GnuTLS, a certificate without alternative names is known by its common
// name.
func checkName(c *x509.Certificate, name string) error {
	if len(c.DNSNames)+len(c.IPAddresses)+len(c.URIs)+len(c.EmailAddresses) > 0 || net.ParseIP(name) != nil {
		return c.VerifyHostname(name)
	}
	if !strings.EqualFold(c.Subject.CommonName, name) {
		return fmt.Errorf("the certificate is for %s, not for %s", c.Subject.CommonName, name)
	}
	return nil
}
