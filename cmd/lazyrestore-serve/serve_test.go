package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/pageserver/tlsfiles"
	"github.com/lazyrestore/lazyrestore/pageserver/tlsfiles/tlstest"
	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
	}
	testscript.Main(m, map[string]func(){"lazyrestore-serve": main})
}

// asCommand makes the test binary be the command.
const asCommand = "LAZYRESTORE_SERVE_TEST"

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status": func(ts *testscript.TestScript, _ bool, args []string) {
				code := "0"
				if err := ts.Exec(args[1], args[2:]...); err != nil {
					code = strings.TrimPrefix(err.Error(), "exit status ")
				}
				if code != args[0] {
					ts.Fatalf("status %s, want %s", code, args[0])
				}
			},
		},
	})
}

// writeImage writes a small image with pages of pattern.
func writeImage(t *testing.T, dir string, pattern byte) {
	t.Helper()
	m, _ := imagetest.Write(t, image.WriterOptions{}, imagetest.Run{At: 0x10000, P: bytes.Repeat([]byte{pattern, 1, 2, 3}, 64<<10)})
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range m.Names() {
		if err := os.WriteFile(filepath.Join(dir, name), m.Get(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// A server is the command at work.
type server struct {
	ready
	cmd    *exec.Cmd
	stdout *bufio.Reader
	stderr bytes.Buffer
}

// prepare makes the command, not yet started.
func prepare(t *testing.T, args ...string) *server {
	t.Helper()
	s := &server{cmd: exec.Command("/proc/self/exe", append([]string{"--json"}, args...)...)}
	s.cmd.Env = append(os.Environ(), asCommand+"=1")
	s.cmd.Stderr = &s.stderr
	return s
}

// start starts it, and waits until it is ready.
func (s *server) start(t *testing.T) *server {
	t.Helper()
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.stdout = bufio.NewReader(out)
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		if t.Failed() {
			t.Logf("the server said:\n%s", &s.stderr)
		}
	})
	if err := json.NewDecoder(s.stdout).Decode(&s.ready); err != nil {
		_ = s.cmd.Wait()
		t.Fatalf("%v: %s", err, &s.stderr)
	}
	return s
}

// stop tells it to end, and wants it to end well.
func (s *server) stop(t *testing.T) {
	t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Wait(); err != nil {
		t.Errorf("the server: %v: %s", err, &s.stderr)
	}
}

// fetch opens an image over a connection and reads its manifest.
func fetch(t *testing.T, nc net.Conn, name string) ([]byte, error) {
	t.Helper()
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
	b := wire.ClientHello{Version: wire.Version}.Append(nil)
	b = wire.Open{Image: 1, Name: name}.Append(b, 1)
	b = wire.Read{Image: 1, Length: wire.MinRead, Object: "manifest.json"}.Append(b, 2, wire.FlagShort)
	b = wire.AppendPing(b, 3) // answered when the read has been counted
	if _, err := nc.Write(b); err != nil {
		return nil, err
	}
	var content []byte
	for d := wire.NewDecoder(nc, wire.Client, 4096); ; {
		m, err := d.Next()
		if err != nil {
			return nil, err
		}
		switch m.Type {
		case wire.TypeError:
			e, err := wire.ParseError(m.Body)
			if err != nil {
				t.Fatal(err)
			}
			return nil, e
		case wire.TypeData:
			content = make([]byte, m.Data.Length)
			if err := d.ReadPayload(content); err != nil {
				return nil, err
			}
		case wire.TypeDone:
			return content, nil
		default: // HELLO, OPENED
		}
	}
}

// wantImage fetches an image that is in dir.
func wantImage(t *testing.T, nc net.Conn, dir string) {
	t.Helper()
	want, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := fetch(t, nc, filepath.Base(dir))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("image %s: %d bytes, %v, want %d", dir, len(got), err, len(want))
	}
}

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	network := "tcp"
	if path, unix := strings.CutPrefix(address, "unix:"); unix {
		network, address = "unix", path
	}
	nc, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	return nc
}

func TestServe(t *testing.T) {
	dir := t.TempDir()
	images, alone := filepath.Join(dir, "images"), filepath.Join(dir, "alone")
	writeImage(t, filepath.Join(images, "one"), 1)
	writeImage(t, alone, 2)
	socket := filepath.Join(dir, "socket")
	for _, tt := range []struct {
		name string
		args []string
	}{
		{"tcp", []string{"--port", "0"}},
		{"tcp by name", []string{"--address", "localhost", "--port", "0"}},
		{"insecure", []string{"--address", "0.0.0.0", "--insecure", "--port", "0"}},
		{"unix", []string{"--address", socket}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := prepare(t, append(tt.args, images, alone)...).start(t)
			if !slices.Equal(s.Images, []string{"alone", "one"}) || s.TLS || len(s.Addresses) != 1 {
				t.Errorf("ready: %+v", s.ready)
			}
			wantImage(t, dial(t, s.Addresses[0]), filepath.Join(images, "one"))
			wantImage(t, dial(t, s.Addresses[0]), alone)
			// An image that comes later.
			late := filepath.Join(images, "late")
			if _, err := fetch(t, dial(t, s.Addresses[0]), "late"); err == nil {
				t.Error("an image that is not there")
			}
			writeImage(t, late, 3)
			wantImage(t, dial(t, s.Addresses[0]), late)
			if err := os.RemoveAll(late); err != nil {
				t.Fatal(err)
			}
			s.stop(t)
		})
	}
	if _, err := os.Lstat(socket); err == nil {
		t.Error("the socket was left behind")
	}
}

func TestUnixSocketIsOwners(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "socket")
	s := prepare(t, "--address", socket, dir).start(t)
	fi, err := os.Stat(socket)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v, want mode 0600", fi.Mode(), err)
	}
	if out, err := prepare(t, "--address", socket, dir).cmd.CombinedOutput(); err == nil {
		t.Errorf("a second server on the same socket: %s", out)
	}
	// One that was killed leaves its socket; the next one takes it over.
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	if _, err := os.Stat(socket); err != nil {
		t.Fatal(err)
	}
	prepare(t, "--address", socket, dir).start(t).stop(t)
}

func TestServeTLS(t *testing.T) {
	dir, authority := t.TempDir(), tlstest.NewAuthority(t)
	writeImage(t, filepath.Join(dir, "one"), 1)
	certs := t.TempDir()
	files := authority.Write(t, certs, "server", time.Hour)
	client := func(a *tlstest.Authority) *tls.Config {
		pair, err := tlsfiles.Open(a.Write(t, t.TempDir(), "client", time.Hour), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return pair.Client("localhost")
	}
	s := prepare(t, "--address", "0.0.0.0", "--port", "0", "--tls-cacert", files.CACert, "--tls-cert", files.Cert, "--tls-key", files.Key, dir).start(t)
	if !s.TLS {
		t.Errorf("ready: %+v", s.ready)
	}
	good := client(authority)
	wantImage(t, tls.Client(dial(t, s.Addresses[0]), good), filepath.Join(dir, "one"))

	// Not without TLS, nor without a certificate.
	if _, err := fetch(t, dial(t, s.Addresses[0]), "one"); err == nil {
		t.Error("an image without TLS")
	}
	none := good.Clone()
	none.Certificates = nil
	if _, err := fetch(t, tls.Client(dial(t, s.Addresses[0]), none), "one"); err == nil {
		t.Error("an image without a certificate")
	}

	// Another authority, while the server runs and a client is connected.
	connected := tls.Client(dial(t, s.Addresses[0]), good)
	if err := connected.Handshake(); err != nil {
		t.Fatal(err)
	}
	next := tlstest.NewAuthority(t)
	next.Write(t, certs, "server", time.Hour)
	wantImage(t, tls.Client(dial(t, s.Addresses[0]), client(next)), filepath.Join(dir, "one"))
	if _, err := fetch(t, tls.Client(dial(t, s.Addresses[0]), good), "one"); err == nil {
		t.Error("a client of the old authority is let in")
	}
	wantImage(t, connected, filepath.Join(dir, "one"))
	s.stop(t)
}

func TestStatusFD(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s := prepare(t, "--status-fd", "3", "--port", "0", t.TempDir())
	s.cmd.ExtraFiles = []*os.File{w}
	s.start(t)
	w.Close()
	b, err := io.ReadAll(r) // ends, for the server closes it
	if err != nil || !bytes.Equal(b, []byte{0}) {
		t.Errorf("%q, %v, want a zero byte", b, err)
	}
	s.stop(t)
}

// As systemd does it: sockets from descriptor 3 on, for the process that
// LISTEN_PID names, and a socket to tell readiness to.
func TestSystemd(t *testing.T) {
	dir := t.TempDir()
	writeImage(t, filepath.Join(dir, "one"), 1)
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, ".notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	unix, err := net.Listen("unix", filepath.Join(dir, ".socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close()
	s := prepare(t)
	s.cmd = exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh", os.Args[0], "--json", dir)
	s.cmd.Stderr = &s.stderr
	s.cmd.Env = append(os.Environ(), asCommand+"=1", "LISTEN_FDS=2", "NOTIFY_SOCKET="+filepath.Join(dir, ".notify"))
	for _, ln := range []interface{ File() (*os.File, error) }{tcp.(*net.TCPListener), unix.(*net.UnixListener)} {
		f, err := ln.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		s.cmd.ExtraFiles = append(s.cmd.ExtraFiles, f)
	}
	s.start(t)
	told := func(want string) {
		t.Helper()
		b := make([]byte, 100)
		_ = notify.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, err := notify.Read(b)
		if err != nil || string(b[:n]) != want {
			t.Errorf("systemd is told %q, %v, want %q", b[:n], err, want)
		}
	}
	told("READY=1")
	if len(s.Addresses) != 2 {
		t.Errorf("ready: %+v", s.ready)
	}
	for _, address := range s.Addresses {
		wantImage(t, dial(t, address), filepath.Join(dir, "one"))
	}
	s.stop(t)
	told("STOPPING=1")
}

// A connection that is open does not hold the end up for longer than asked.
func TestStopTimeout(t *testing.T) {
	dir := t.TempDir()
	writeImage(t, filepath.Join(dir, "one"), 1)
	s := prepare(t, "--port", "0", "--stop-timeout", "100ms", dir).start(t)
	nc := dial(t, s.Addresses[0])
	defer nc.Close()
	fmt.Fprint(nc, "half a hell")
	s.stop(t)
}
