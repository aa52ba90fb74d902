package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/store"
	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// With few descriptors there are fewer connections, so that images can be opened for
// those, however many are one too many and are told so.
func TestFewDescriptors(t *testing.T) {
	dir := t.TempDir()
	writeImage(t, filepath.Join(dir, "one"), 1)
	s := few(t, dir)
	say := func(nc net.Conn, b []byte) wire.Type {
		if _, err := nc.Write(b); err != nil {
			t.Fatal(err)
		}
		m, err := wire.NewDecoder(nc, wire.Client, 64).Next()
		if err != nil {
			t.Fatal(err)
		}
		return m.Type
	}
	begin := func() net.Conn {
		nc := dial(t, s.Addresses[0])
		t.Cleanup(func() { nc.Close() })
		_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
		return nc
	}
	hello := wire.ClientHello{Version: wire.Version}.Append(nil)
	first := begin()
	for i := range fewConnections - 1 {
		nc := first
		if i > 0 {
			nc = begin()
		}
		if got := say(nc, hello); got != wire.TypeHello {
			t.Fatalf("connection %d: %v", i, got)
		}
	}
	wantImage(t, dial(t, s.Addresses[0]), filepath.Join(dir, "one"))
	served := 0
	for say(begin(), hello) == wire.TypeHello {
		served++
	}
	if served > 1 {
		t.Errorf("%d connections more than there were to be", served-1)
	}
	for range fewConnections {
		begin() // it is refused, and does not end its half
	}
	for i := range uint32(20) {
		if got := say(first, wire.Open{Image: i, Name: "one"}.Append(nil, 2*i+1)); got != wire.TypeOpened {
			t.Fatalf("an image, beside connections that are refused: %v", got)
		}
		if got := say(first, wire.AppendClose(nil, 2*i+2, i)); got != wire.TypeDone {
			t.Fatal(got)
		}
	}
}

// An image for which there are too few descriptors is not said to be damaged. Where fewer
// connections are asked for they are enough.
func TestFewDescriptorsForAnImage(t *testing.T) {
	dir := t.TempDir()
	writeManyFiles(t, filepath.Join(dir, "one"), 100)
	for _, tt := range []struct {
		files  int
		args   []string
		refuse bool
	}{{64, nil, true}, {256, nil, true}, {256, []string{"--max-connections", "64"}, false}} {
		t.Run(fmt.Sprint(tt.files, tt.args), func(t *testing.T) {
			s := limited(t, tt.files, append(tt.args, dir)...)
			if !slices.Equal(s.Images, []string{"one"}) {
				t.Errorf("images %q are listed: to look at one takes a few descriptors", s.Images)
			}
			nc := dial(t, s.Addresses[0])
			defer nc.Close()
			hello := wire.ClientHello{Version: wire.Version}.Append(nil)
			if _, err := nc.Write(wire.Open{Image: 1, Name: "one"}.Append(hello, 1)); err != nil {
				t.Fatal(err)
			}
			d := wire.NewDecoder(nc, wire.Client, 64)
			m, err := d.Next()
			if err == nil {
				m, err = d.Next()
			}
			if !tt.refuse && err == nil && m.Type == wire.TypeOpened {
				return
			}
			if err != nil || m.Type != wire.TypeError {
				t.Fatalf("%v, %v", m, err)
			}
			e, err := wire.ParseError(m.Body)
			if !tt.refuse || err != nil || e.Code != wire.CodeFailed || !strings.Contains(e.Text, "a higher limit of open files") {
				t.Errorf("%v, %v", e, err)
			}
		})
	}
}

// writeManyFiles writes an image of n objects and those that every image has.
func writeManyFiles(t *testing.T, path string, n int) {
	t.Helper()
	staging, err := store.CreateDir(path)
	if err != nil {
		t.Fatal(err)
	}
	w, err := image.NewWriter(staging, image.WriterOptions{})
	for i := 0; err == nil && i < n; i++ {
		var o io.WriteCloser
		if o, err = w.Object(fmt.Sprintf("core-%d.img", i)); err == nil {
			err = o.Close()
		}
	}
	if err == nil {
		_, err = w.Finish(t.Context(), image.Manifest{})
	}
	if err == nil {
		err = staging.Commit()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Images that one client has open take no descriptors from the connections of others.
func TestFewDescriptorsForImages(t *testing.T) {
	dir := t.TempDir()
	const images = 16
	for i := range images {
		writeImage(t, filepath.Join(dir, fmt.Sprint(i)), byte(i))
	}
	s := few(t, dir)
	ask := func(nc net.Conn, b []byte) wire.Message {
		t.Helper()
		_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := nc.Write(b); err != nil {
			t.Fatal(err)
		}
		m, err := wire.NewDecoder(nc, wire.Client, 64).Next()
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	hello := wire.ClientHello{Version: wire.Version}.Append(nil)
	greedy := dial(t, s.Addresses[0])
	defer greedy.Close()
	ask(greedy, hello)
	opened := 0
	for i := range uint32(images) {
		m := ask(greedy, wire.Open{Image: i, Name: fmt.Sprint(i)}.Append(nil, i+1))
		if m.Type == wire.TypeOpened {
			opened++
		} else if e, err := wire.ParseError(m.Body); err != nil || e.Code != wire.CodeBusy {
			t.Errorf("image %d: %v, %v", i, e, err)
		}
	}
	if opened == 0 || opened == images {
		t.Errorf("%d of %d images are open", opened, images)
	}
	for i := range fewConnections - 1 {
		nc := dial(t, s.Addresses[0])
		defer nc.Close()
		if m := ask(nc, hello); m.Type != wire.TypeHello {
			t.Fatalf("connection %d beside many images: %v", i, m.Type)
		}
	}
}

// fewConnections is how many connections a server of few takes.
const fewConnections = (64 - ownDescriptors) / 4 * 3

// few starts a server with few descriptors.
func few(t *testing.T, args ...string) *server {
	t.Helper()
	return limited(t, 64, args...)
}

// limited starts a server that may have so many files open.
func limited(t *testing.T, files int, args ...string) *server {
	t.Helper()
	s := prepare(t, append([]string{"--port", "0"}, args...)...)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s.cmd.Path, s.cmd.Args = "/bin/sh", append([]string{"sh", "-c", fmt.Sprintf(`ulimit -n %d; exec "$0" "$@"`, files), self}, s.cmd.Args[1:]...)
	return s.start(t)
}

// Who has asked for more connections than can be is told so, and nobody else.
func TestFewDescriptorsWarning(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want bool
	}{{nil, false}, {[]string{"--max-connections", fmt.Sprint(fewConnections)}, false}, {[]string{"--max-connections", "4096"}, true}} {
		s := few(t, append(tt.args, t.TempDir())...)
		s.stop(t)
		if got := strings.Contains(s.stderr.String(), "fewer connections"); got != tt.want {
			t.Errorf("with %q it warns: %v, want %v", tt.args, got, tt.want)
		}
	}
}
