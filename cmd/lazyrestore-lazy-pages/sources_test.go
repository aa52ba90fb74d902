package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/convert"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/criutest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pageserver"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pageset"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pagetls"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pagetls/pagetlstest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/store"
	images "github.com/lazyrestore/lazyrestore/pageserver"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// importSet makes an image of ours of a set.
func importSet(t *testing.T, images string, codec chunk.Codec) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "image")
	dir, err := imgfile.Open(images)
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.CreateDir(out)
	if err != nil {
		t.Fatal(err)
	}
	w, err := image.NewWriter(st, image.WriterOptions{Spec: chunk.Spec{Codec: codec}})
	if err != nil {
		t.Fatal(err)
	}
	m, err := convert.Import(t.Context(), dir, w)
	if err != nil {
		w.Abort()
		t.Fatal(err)
	}
	if _, err := w.Finish(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if err := st.Commit(); err != nil {
		t.Fatal(err)
	}
	return out
}

// CRIU restores from an image that was made of its set, and the lazy pages come
// out of its compressed chunks.
func TestRestoreFromACompressedImage(t *testing.T) {
	criutest.Need(t)
	for _, codec := range []chunk.Codec{chunk.LZ4, chunk.Zstd} {
		t.Run(codec.String(), func(t *testing.T) {
			images := t.TempDir()
			s := criutest.Start(t, "tree", 8)
			s.Dump(t, images)
			made := importSet(t, images, codec)
			d := start(t, made)
			s.Restore(t, made, "--lazy-pages")
			s.Tell(t, "go")
			s.Wait(t)
			d.wait(t)
		})
	}
}

// The same with the daemon killed in between.
func TestKillAndResumeFromACompressedImage(t *testing.T) {
	criutest.Need(t)
	images := t.TempDir()
	s := criutest.Start(t, "remap", 8)
	s.Dump(t, images)
	made := importSet(t, images, chunk.LZ4)
	d := start(t, made, "--background", "none")
	s.Restore(t, made, "--lazy-pages")
	s.Tell(t, "go")
	s.Await(t, "done")
	d.kill(t)
	s.Tell(t, "check")
	d = start(t, made, "--resume")
	s.Wait(t)
	d.wait(t)
}

// serveImages serves the images below a directory with our own protocol, until
// the test ends, at the address that it returns.
func serveImages(t *testing.T, root string) string {
	t.Helper()
	catalog, err := images.NewCatalog(root)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := images.NewServer(catalog, images.ServerOptions{})
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		_ = s.Shutdown(t.Context())
		<-done
	})
	return "tcp://" + l.Addr().String()
}

// The pages are in an image that a server has: where CRIU restores there are
// none. The daemon is killed in between.
func TestRestoreFromAServedImage(t *testing.T) {
	criutest.Need(t)
	dump := t.TempDir()
	s := criutest.Start(t, "fork", 8)
	s.Dump(t, dump)
	made := importSet(t, dump, chunk.Zstd)
	here := t.TempDir()
	if err := os.CopyFS(here, os.DirFS(made)); err != nil {
		t.Fatal(err)
	}
	for _, object := range []string{image.ManifestObject, "pages.idx", "pages.zst"} {
		if err := os.Remove(filepath.Join(here, object)); err != nil {
			t.Fatal(err)
		}
	}
	from := serveImages(t, filepath.Dir(made)) + "/" + filepath.Base(made)
	d := start(t, here, "--image", from, "--background", "none")
	s.Restore(t, here, "--lazy-pages")
	s.Tell(t, "go")
	s.Await(t, "done")
	d.kill(t)
	s.Tell(t, "check")
	d = start(t, here, "--image", from, "--resume")
	s.Wait(t)
	d.wait(t)
}

// servePages gives the pages of a set, until the test ends, at the port that
// it returns.
func servePages(t *testing.T, images string, secure *tls.Config) string {
	t.Helper()
	dir, err := imgfile.Open(images)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	if secure != nil {
		l = tls.NewListener(l, secure)
	}
	set, err := pageset.OfFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- pageserver.Serve(ctx, l, set, pageserver.Options{}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		set.Close()
	})
	return port
}

func TestRestoreFromAPageServer(t *testing.T) {
	criutest.Need(t)
	for _, tt := range []struct {
		scene, dialect string
		secure         bool
	}{{"tree", "4.1", false}, {"changes", "4.2", false}, {"plain", "4.1", true}} {
		t.Run(tt.scene+" "+tt.dialect, func(t *testing.T) {
			images := t.TempDir()
			s := criutest.Start(t, tt.scene, 8)
			s.Dump(t, images)
			args := []string{"--page-server", "--address", "localhost", "--dialect", tt.dialect}
			var config *tls.Config
			if tt.secure {
				ca := pagetlstest.New(t)
				server, own := ca.Pair(t, "localhost"), ca.Pair(t, "")
				var err error
				if config, err = (pagetls.Options{CACert: ca.CACert, Cert: server.Cert, Key: server.Key}).Server(); err != nil {
					t.Fatal(err)
				}
				args = append(args, "--tls", "--tls-cacert", ca.CACert, "--tls-cert", own.Cert, "--tls-key", own.Key)
			}
			d := start(t, images, append(args, "--port", servePages(t, images, config))...)
			s.Restore(t, images, "--lazy-pages")
			s.Tell(t, "go")
			s.Wait(t)
			d.wait(t)
		})
	}
}

// A page server that cannot be reached is an error at once, and not when a task
// that criu restore has built waits for its first page.
func TestPageServerThatIsNotThere(t *testing.T) {
	criutest.Need(t)
	images := t.TempDir()
	s := criutest.Start(t, "plain", 4)
	s.Dump(t, images)
	const address = "127.133.0.1" // nobody else has it, nor takes the port
	l, err := net.Listen("tcp", address+":0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	var out bytes.Buffer
	ended := make(chan int, 1)
	go func() {
		ended <- run([]string{"x", "--no-default-config", "-D", images, "--page-server", "--address", address, "--port", port}, io.Discard, &out)
	}()
	select {
	case code := <-ended:
		if code != 1 || !strings.Contains(out.String(), "connection refused") {
			t.Errorf("exit status %d: %s", code, out.String())
		}
	case <-time.After(uffdtest.Timeout):
		t.Fatal("it waits for criu restore")
	}
	if _, err := os.Stat(filepath.Join(images, "lazy-pages.socket")); err == nil {
		t.Error("the socket is there")
	}
}

// Where the socket cannot be made the page server is not connected to: CRIU's own
// ends with its first connection, and the memory with it.
func TestPageServerIsNotUsedUpInVain(t *testing.T) {
	criutest.Need(t)
	images := t.TempDir()
	s := criutest.Start(t, "plain", 4)
	s.Dump(t, images)
	if err := os.Mkdir(filepath.Join(images, "lazy-pages.socket"), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	code := run([]string{"x", "--no-default-config", "-D", images, "--page-server", "--address", "localhost", "--port", port}, io.Discard, &out)
	if code != 1 || !strings.Contains(out.String(), "lazy-pages.socket") {
		t.Errorf("exit status %d: %s", code, out.String())
	}
	own, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	first, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if got, want := first.RemoteAddr().String(), own.LocalAddr().String(); got != want {
		t.Errorf("%s has connected before %s", got, want)
	}
}

// With a page server that takes another connection, a daemon that is killed can
// be followed by another.
func TestKillAndResumeFromAPageServer(t *testing.T) {
	criutest.Need(t)
	images := t.TempDir()
	s := criutest.Start(t, "fork", 8)
	s.Dump(t, images)
	args := []string{"--page-server", "--port", servePages(t, images, nil)}
	d := start(t, images, append(args, "--background", "none")...)
	s.Restore(t, images, "--lazy-pages")
	s.Tell(t, "go")
	s.Await(t, "done")
	d.kill(t)
	s.Tell(t, "check")
	d = start(t, images, append(args, "--resume")...)
	s.Wait(t)
	d.wait(t)
}
