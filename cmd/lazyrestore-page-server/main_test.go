package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/criutest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/lazypages"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pagetls/pagetlstest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pagexfer"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/store"
)

// roleEnv makes this test binary the command, or a lazy-pages daemon.
const roleEnv = "LAZYRESTORE_PAGE_SERVER"

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case "page-server":
		os.Exit(run(os.Args, os.Stdout, os.Stderr))
	case "lazy-pages":
		if err := lazyPages(os.Args[1], os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(criutest.Main(m))
}

// lazyPages serves the set in images, whose lazy pages are with the page server
// at an address, or in the image that images is.
func lazyPages(images, work, address string) error {
	opts := lazypages.Options{Images: images, WorkDir: work, Ready: func() error {
		_, err := os.NewFile(3, "ready").Write([]byte{0})
		return err
	}}
	if address != "" {
		opts.Server = &lazypages.Server{Dialect: pagexfer.V42, Dial: func(context.Context) (net.Conn, error) { return net.Dial("tcp", address) }}
	} else {
		src, err := store.OpenDir(images)
		if err != nil {
			return err
		}
		defer src.Close()
		if opts.Image, err = image.Open(context.Background(), src, image.OpenOptions{}); err != nil {
			return err
		}
	}
	_, err := lazypages.Serve(context.Background(), opts)
	return err
}

// A process is a command at work.
type process struct {
	cmd  *exec.Cmd
	err  bytes.Buffer
	done chan error
}

// start runs a command, and waits until it says on descriptor 3 that it is
// ready.
func start(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p := &process{cmd: cmd, done: make(chan error, 1)}
	cmd.ExtraFiles = []*os.File{w}
	if cmd.Stderr == nil {
		cmd.Stderr = &p.err
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	go func() { p.done <- cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	if err := r.SetReadDeadline(time.Now().Add(criutest.Patience)); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(make([]byte, 2)); n != 1 || err != nil {
		t.Fatalf("%v: not ready: %d bytes, %v; %s", cmd.Args, n, err, p.err.Bytes())
	}
	return p
}

// wait waits until the command ends, well.
func (p *process) wait(t *testing.T) {
	t.Helper()
	if err := p.end(t); err != nil {
		t.Fatalf("%v: %v; %s", p.cmd.Args, err, p.err.Bytes())
	}
}

func (p *process) end(t *testing.T) error {
	t.Helper()
	select {
	case err := <-p.done:
		p.done <- err
		return err
	case <-time.After(criutest.Patience):
		t.Fatalf("%v does not end; %s", p.cmd.Args, p.err.Bytes())
		return nil
	}
}

// role is a command that is this test binary.
func role(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), roleEnv+"="+name)
	return cmd
}

// A server is our page server at work.
type server struct {
	*process
	address, port string
}

var listening = regexp.MustCompile(`listening address=127\.0\.0\.1:(\d+)`)

// startServer runs the command on a port that is free.
func startServer(t *testing.T, dir string, args ...string) *server {
	t.Helper()
	log := filepath.Join(t.TempDir(), "page-server.log")
	args = append([]string{"--no-default-config", "-D", dir, "-v4", "-o", log, "--address", "127.0.0.1", "--status-fd", "3"}, args...)
	s := &server{process: start(t, role(t, "page-server", args...))}
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if text, err := os.ReadFile(log); err == nil && t.Failed() {
			t.Logf("page server:\n%s", text)
		}
	})
	m := listening.FindSubmatch(text)
	if m == nil {
		t.Fatalf("the log does not tell the port:\n%s", text)
	}
	s.port = string(m[1])
	s.address = "127.0.0.1:" + s.port
	return s
}

// with is the options by which CRIU finds the server.
func (s *server) with(more ...string) []string {
	return append([]string{"--page-server", "--address", "127.0.0.1", "--port", s.port}, more...)
}

// mkdirs makes directories below one of the test's.
func mkdirs(t *testing.T, names ...string) string {
	t.Helper()
	top := t.TempDir()
	for _, n := range names {
		if err := os.Mkdir(filepath.Join(top, n), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return top
}

// join copies the files of one directory beside those of another.
func join(t *testing.T, from, to string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(from, "*.img"))
	if err != nil || len(files) == 0 {
		t.Fatal(err, files)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, filepath.Base(f)), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// What criu dump sends to us, criu restores: eagerly and by its own daemon from
// its own files, lazily from a compressed image.
func TestDumpThroughPageServer(t *testing.T) {
	criutest.Need(t)
	for _, scene := range []string{"plain", "threads", "tree"} {
		for _, codec := range []string{"", "lz4", "zstd"} {
			t.Run(scene+" "+codec, func(t *testing.T) {
				top := mkdirs(t, "local")
				local, pages := filepath.Join(top, "local"), filepath.Join(top, "pages")
				var args []string
				if codec != "" {
					args = []string{"--codec", codec}
				} else if err := os.Mkdir(pages, 0o700); err != nil {
					t.Fatal(err)
				}
				s := startServer(t, pages, args...)
				subject := criutest.Start(t, scene, 16)
				subject.Dump(t, local, s.with()...)
				s.wait(t)
				join(t, local, pages)
				if codec == "" {
					subject.Restore(t, pages)
					subject.Tell(t, "go")
					subject.Wait(t)
					return
				}
				daemon := start(t, role(t, "lazy-pages", pages, pages, ""))
				subject.Restore(t, pages, "--lazy-pages")
				subject.Tell(t, "go")
				subject.Wait(t)
				daemon.wait(t)
			})
		}
	}
}

// tlsArgs are the options for one side.
func tlsArgs(a *pagetlstest.Authority, p pagetlstest.Pair) []string {
	return []string{"--tls", "--tls-cacert", a.CACert, "--tls-cert", p.Cert, "--tls-key", p.Key}
}

// Dump and lazy restore over TLS, with certificates of one authority; and a dump
// that shows one of another is turned away, and its process runs on.
func TestTLS(t *testing.T) {
	criutest.Need(t)
	us, them := pagetlstest.New(t), pagetlstest.New(t)
	here, peer := us.Pair(t, "127.0.0.1"), us.Pair(t, "127.0.0.1")
	top := mkdirs(t, "local", "pages", "stranger")
	local, pages := filepath.Join(top, "local"), filepath.Join(top, "pages")
	s := startServer(t, pages, tlsArgs(us, here)...)
	subject := criutest.Start(t, "plain", 16)
	args := append(s.with(tlsArgs(them, them.Pair(t, "127.0.0.1"))...), "--tls-no-cn-verify")
	stranger := criutest.Command(t, append([]string{"dump", "-t", strconv.Itoa(subject.Pid), "-D", filepath.Join(top, "stranger")}, args...)...)
	if out, err := stranger.CombinedOutput(); err == nil {
		t.Fatalf("a stranger's dump: %s", out)
	}
	subject.Dump(t, local, s.with(tlsArgs(us, peer)...)...)
	s.wait(t)
	join(t, local, pages)
	s = startServer(t, pages, append(tlsArgs(us, here), "--lazy-pages")...)
	work := t.TempDir()
	daemon := start(t, criutest.Command(t, append(s.with(tlsArgs(us, peer)...), "lazy-pages", "-D", pages, "-W", work, "-v4", "-o", "lp.log", "--status-fd", "3")...))
	subject.Restore(t, pages, "--lazy-pages", "-W", work)
	subject.Tell(t, "go")
	subject.Wait(t)
	daemon.wait(t)
}

// Two restores of one set at once, each in a pid namespace of its own, from one
// server: one by CRIU's own daemon, the other by ours, which speaks as CRIU 4.2
// does. Then two more, whose pages come from a compressed image.
func TestTwoRestoresAtOnce(t *testing.T) {
	criutest.Need(t)
	images := t.TempDir()
	subject := criutest.Start(t, "plain", 32)
	subject.Dump(t, images)
	imported := filepath.Join(t.TempDir(), "image")
	importSet(t, images, imported)
	subject.Tell(t, "go")
	for _, from := range []string{images, imported} {
		s := startServer(t, from, "--lazy-pages")
		ours, theirs := t.TempDir(), t.TempDir()
		daemons := []*process{
			start(t, role(t, "lazy-pages", images, ours, s.address)),
			start(t, criutest.Command(t, append(s.with(), "lazy-pages", "-D", images, "-W", theirs, "-v4", "-o", "lp.log", "--status-fd", "3")...)),
		}
		restores := []*process{restoreApart(t, images, ours), restoreApart(t, images, theirs)}
		for i, r := range restores {
			r.wait(t)
			daemons[i].wait(t)
		}
	}
}

// restoreApart restores into a new pid namespace, and ends with the process.
func restoreApart(t *testing.T, images, work string) *process {
	t.Helper()
	criu := criutest.Command(t, "restore", "-D", images, "-W", work, "-v4", "-o", "restore.log", "--lazy-pages")
	cmd := exec.Command("unshare", append([]string{"--pid", "--fork", "--mount-proc", "--kill-child"}, criu.Args...)...)
	p := &process{cmd: cmd, done: make(chan error, 1)}
	cmd.Stderr = &p.err
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.done <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		if text, err := os.ReadFile(filepath.Join(work, "restore.log")); err == nil && t.Failed() {
			t.Logf("restore:\n%s", text[max(0, len(text)-3000):])
		}
	})
	return p
}

// A server that is killed, or loses its dump, leaves the process where it was,
// and no image.
func TestDumpOfKilledServer(t *testing.T) {
	criutest.Need(t)
	top := mkdirs(t, "local", "pages")
	local, pages := filepath.Join(top, "local"), filepath.Join(top, "pages")
	subject := criutest.Start(t, "plain", 16)
	s := startServer(t, pages, "--codec", "lz4")
	_ = s.cmd.Process.Kill()
	if err := s.end(t); err == nil {
		t.Error("a killed server ended well")
	}
	dump := criutest.Command(t, append(s.with(), "dump", "-t", strconv.Itoa(subject.Pid), "-D", local)...)
	if out, err := dump.CombinedOutput(); err == nil {
		t.Fatalf("dump: %s", out)
	}
	subject.Tell(t, "go")
	subject.Wait(t)
	if entries, err := os.ReadDir(pages); err != nil || len(entries) > 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

func TestUsage(t *testing.T) {
	images := t.TempDir()
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"port":         {[]string{"--port", "x"}, "1 to 65535"},
		"port 0":       {[]string{"--po", "0"}, "1 to 65535"},
		"codec":        {[]string{"--codec", "rar"}, "rar"},
		"both":         {[]string{"--codec", "lz4", "--lazy-pages"}, "either given or made"},
		"no images":    {[]string{"--lazy-pages"}, "no images of memory"},
		"no directory": {[]string{"-D", "/nonexistent"}, "no such file"},
		"no parent":    {[]string{"--prev-images-dir", "../nothing"}, "--prev-images-dir"},
		"ambiguous":    {[]string{"--p", "1"}, "ambiguous"},
		"words":        {[]string{"dump"}, "dump"},
		"clients":      {[]string{"--max-clients", "0"}, "above 0"},
		"certificates": {[]string{"--tls", "--tls-cacert", "/nonexistent"}, "--tls-cacert"},
		"socket":       {[]string{"--ps-socket", "99"}, "--ps-socket"},
	} {
		t.Run(name, func(t *testing.T) {
			var out, err bytes.Buffer
			args := append([]string{"lazyrestore-page-server", "--no-default-config", "-D", images, "--address", "127.0.0.1"}, c.args...)
			if code := run(args, &out, &err); code != 1 {
				t.Errorf("exit code %d", code)
			}
			if !strings.Contains(err.String(), c.want) {
				t.Errorf("%s", err.String())
			}
		})
	}
	var out, err bytes.Buffer
	if code := run([]string{"x", "-h"}, &out, &err); code != 0 || !strings.Contains(out.String(), "--prev-images-dir") {
		t.Errorf("help: %d, %s", code, out.String())
	}
	if code := run([]string{"x", "-V"}, &out, &err); code != 0 {
		t.Errorf("version: %d", code)
	}
}

// --daemon, --pidfile and relative names; the socket that was inherited.
func TestDaemon(t *testing.T) {
	images, work := t.TempDir(), t.TempDir()
	cmd := role(t, "page-server", "--no-default-config", "-D", images, "-W", work, "-o", "log", "-v3", "-d", "--pidfile", "pid", "--address", "127.0.0.1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	pid, err := os.ReadFile(filepath.Join(work, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(string(pid))
	if err != nil {
		t.Fatal(err)
	}
	p, err := os.FindProcess(n)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(work, "log"))
	m := listening.FindSubmatch(text)
	if err != nil || m == nil {
		t.Errorf("log: %v\n%s", err, text)
	} else if conn, err := net.Dial("tcp", "127.0.0.1:"+string(m[1])); err != nil {
		t.Error(err)
	} else {
		conn.Close()
	}
	if err := p.Kill(); err != nil {
		t.Error(err)
	}
	_, _ = p.Wait()
}

func TestInheritedSocket(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	f, err := theirs.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	cmd := role(t, "page-server", "--no-default-config", "-D", t.TempDir(), "--ps-socket", "3")
	cmd.ExtraFiles = []*os.File{f}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	b, err := pagexfer.V41.Append(nil, pagexfer.Header{Command: pagexfer.ForceClose})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(b); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 4)); n != 4 || err != nil {
		t.Errorf("reply: %d bytes, %v", n, err)
	}
	conn.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
