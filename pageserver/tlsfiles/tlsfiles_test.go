package tlsfiles_test

import (
	"crypto/tls"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/pageserver/tlsfiles"
	"github.com/lazyrestore/lazyrestore/pageserver/tlsfiles/tlstest"
)

func open(t *testing.T, files tlsfiles.Files) *tlsfiles.Pair {
	t.Helper()
	p, err := tlsfiles.Open(files, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// shake makes a connection and returns the serial numbers of the certificates
// that server and client showed.
func shake(t *testing.T, server, client *tls.Config) (states [2]tls.ConnectionState, err error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	s, c := tls.Server(a, server), tls.Client(b, client)
	done := make(chan error, 1)
	go func() {
		err := s.HandshakeContext(t.Context())
		if err != nil {
			a.Close() // the client waits for what the server has to say
		} else {
			_, err = s.Write([]byte{1})
		}
		done <- err
	}()
	err = c.HandshakeContext(t.Context())
	if err == nil {
		_, err = c.Read(make([]byte, 1)) // the server's word on the client's certificate
	}
	if err != nil {
		b.Close()
	}
	if serverErr := <-done; err == nil {
		err = serverErr
	}
	return [2]tls.ConnectionState{s.ConnectionState(), c.ConnectionState()}, err
}

func TestWhoIsLetIn(t *testing.T) {
	ours, theirs := tlstest.NewAuthority(t), tlstest.NewAuthority(t)
	server := open(t, ours.Write(t, t.TempDir(), "server", time.Hour))
	good := open(t, ours.Write(t, t.TempDir(), "client", time.Hour))
	foreign := open(t, theirs.Write(t, t.TempDir(), "client", time.Hour))
	expired := open(t, ours.Write(t, t.TempDir(), "client", -time.Hour))

	none := good.Client("localhost")
	none.Certificates = nil
	old := good.Client("localhost")
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	stranger := foreign.Client("localhost")
	stranger.RootCAs = good.Client("").RootCAs

	for _, tt := range []struct {
		name   string
		client *tls.Config
		want   string // "" is let in
	}{
		{"good", good.Client("localhost"), ""},
		{"by address", good.Client("127.0.0.1"), ""},
		{"other name", good.Client("example.org"), "not example.org"},
		{"no certificate", none, "certificate required"},
		{"of another authority", stranger, "unknown certificate authority"},
		{"expired", expired.Client("localhost"), "expired"},
		{"server of another authority", foreign.Client("localhost"), "unknown authority"},
		{"TLS 1.2", old, "protocol version"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := shake(t, server.Server(), tt.client)
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("%v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestCertificatesAreReplaced(t *testing.T) {
	first, second := tlstest.NewAuthority(t), tlstest.NewAuthority(t)
	dirs := [2]string{t.TempDir(), t.TempDir()}
	server := open(t, first.Write(t, dirs[0], "server", time.Hour))
	client := open(t, first.Write(t, dirs[1], "client", time.Hour))
	config := server.Server() // made once, as a listener has it
	serials := func() (s [2]string) {
		t.Helper()
		states, err := shake(t, config, client.Client("localhost"))
		if err != nil {
			t.Fatal(err)
		}
		for i, st := range states {
			s[1-i] = st.PeerCertificates[0].SerialNumber.String()
		}
		return s
	}
	before := serials()
	if again := serials(); again != before {
		t.Errorf("certificates %v, then %v", before, again)
	}

	// A file that cannot be read leaves the old one in use.
	key := dirs[0] + "/key.pem"
	good, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := serials(); got != before {
		t.Errorf("certificates %v with a damaged key, want %v", got, before)
	}
	if err := os.WriteFile(key, good, 0o600); err != nil {
		t.Fatal(err)
	}

	// Another authority: both sides change.
	second.Write(t, dirs[0], "server", time.Hour)
	if _, err := shake(t, config, client.Client("localhost")); err == nil {
		t.Error("a client of the old authority was let in")
	}
	second.Write(t, dirs[1], "client", time.Hour)
	after := serials()
	if after[0] == before[0] || after[1] == before[1] {
		t.Errorf("certificates %v, then %v", before, after)
	}
}

func TestFilesThatAreNone(t *testing.T) {
	good := tlstest.NewAuthority(t).Write(t, t.TempDir(), "server", time.Hour)
	empty := t.TempDir() + "/empty"
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*tlsfiles.Files){
		"no authority":    func(f *tlsfiles.Files) { f.CACert = empty },
		"no certificate":  func(f *tlsfiles.Files) { f.Cert = empty },
		"no key":          func(f *tlsfiles.Files) { f.Key = empty },
		"missing":         func(f *tlsfiles.Files) { f.Key += ".not" },
		"key of another":  func(f *tlsfiles.Files) { f.Key = tlstest.NewAuthority(t).Write(t, t.TempDir(), "x", time.Hour).Key },
		"key for a chain": func(f *tlsfiles.Files) { f.Cert = f.Key },
	} {
		t.Run(name, func(t *testing.T) {
			files := good
			change(&files)
			if _, err := tlsfiles.Open(files, slog.New(slog.DiscardHandler)); err == nil {
				t.Error("no error")
			} else {
				t.Log(err)
			}
		})
	}
}
