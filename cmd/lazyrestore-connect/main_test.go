package main

import (
	"crypto/tls"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/native"
	"github.com/lazyrestore/lazyrestore/pageserver"
	"github.com/lazyrestore/lazyrestore/pageserver/tlsfiles"
	"github.com/lazyrestore/lazyrestore/pageserver/tlsfiles/tlstest"
)

// build puts lazyrestore and its helper side by side.
func build(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"lazyrestore", "lazyrestore-connect"} {
		if out, err := exec.Command("go", "build", "-o", filepath.Join(dir, name), "../"+name).CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", name, err, out)
		}
	}
	return dir
}

// serve serves an image named img on a listener.
func serve(t *testing.T, ln net.Listener) {
	t.Helper()
	root := t.TempDir()
	state := native.State{PID: 4711, Threads: []native.Thread{{TID: 4711}}}
	m, _ := imagetest.WriteProcess(t, state.Encode(), image.WriterOptions{Spec: chunk.Spec{Codec: chunk.LZ4}}, imagetest.Run{At: 1 << 20, P: make([]byte, 1<<20)},
		imagetest.Run{At: 1 << 30, P: []byte(strings.Repeat("all of it ", 40960))})
	if err := os.Mkdir(filepath.Join(root, "img"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range m.Names() {
		if err := os.WriteFile(filepath.Join(root, "img", name), m.Get(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	catalog, err := pageserver.NewCatalog(root)
	if err != nil {
		t.Fatal(err)
	}
	s := pageserver.NewServer(catalog, pageserver.ServerOptions{})
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	t.Cleanup(func() {
		_ = s.Shutdown(t.Context())
		<-served
	})
}

func listen(t *testing.T, addr string) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// lazyrestore reaches servers over TLS and at addresses that it does not know
// itself, and says what stands against it where it does not.
func TestConnect(t *testing.T) {
	bin := filepath.Join(build(t), "lazyrestore")
	a := tlstest.NewAuthority(t)
	server := a.Write(t, t.TempDir(), "localhost", time.Hour)
	ours := a.Write(t, t.TempDir(), "client", time.Hour)
	stranger := tlstest.NewAuthority(t).Write(t, t.TempDir(), "stranger", time.Hour)
	pair, err := tlsfiles.Open(server, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	secure := listen(t, "127.0.0.1:0")
	serve(t, tls.NewListener(secure, pair.Server()))
	plain := listen(t, "[::1]:0")
	serve(t, plain)
	_, port, _ := net.SplitHostPort(secure.Addr().String())
	flags := func(f tlsfiles.Files) []string {
		return []string{"--tls-cacert", f.CACert, "--tls-cert", f.Cert, "--tls-key", f.Key}
	}
	for _, tt := range []struct {
		name  string
		addr  string
		flags []string
		says  string
		fails bool
	}{
		{"tls", "tls://localhost:" + port + "/img", flags(ours), "is whole", false},
		{"tls, our certificate is not theirs", "tls://localhost:" + port + "/img", flags(stranger), "certificate", true},
		{"tls to an address", "tls://127.0.0.1:" + port + "/img", flags(ours), "is whole", false},
		{"tls without certificates", "tls://localhost:" + port + "/img", nil, "--tls-cacert", true},
		{"tcp to a server of TLS", "tcp://localhost:" + port + "/img", nil, "localhost", true},
		{"ipv6", "tcp://" + plain.Addr().String() + "/img", nil, "is whole", false},
		{"no such host", "tcp://no-such-host.invalid/img", nil, "no-such-host.invalid", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, err := exec.Command(bin, append(append([]string{"verify"}, tt.flags...), tt.addr)...).CombinedOutput()
			if (err != nil) != tt.fails || !strings.Contains(string(out), tt.says) {
				t.Errorf("%v:\n%s", err, out)
			}
			t.Logf("%s", out)
		})
	}
}
