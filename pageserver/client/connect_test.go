package client_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/store/storetest"
	"github.com/lazyrestore/lazyrestore/pageserver/client"
)

// A server that does not answer is not waited for where there is another one, be that one that gave damaged bytes.
func TestDeadServerIsNotWaitedFor(t *testing.T) {
	noLeaks(t)
	root := t.TempDir()
	want := content(6, 300_000)
	put(t, root, "img", storetest.Objects{"pages.lz4": want})
	good := serve(t, root)
	dead := impostor(t, func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, err := client.Open(ctx, address("img", dead, good.addr), client.Options{Timeout: time.Hour, Logger: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for _, lane := range []image.Lane{image.Demand, image.Background} {
			p := make([]byte, 1000)
			if err := c.ReadRange(ctx, "pages.lz4", p, 0, lane); err != nil || !bytes.Equal(p, want[:1000]) {
				t.Errorf("%v: %v, or other bytes", lane, err)
			}
		}
		c.Reject("pages.lz4", 0, 1000, errors.New("damaged")) // it is left, and has to be asked again
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// A server that takes long to be there is asked in the end for what another one gives damaged, which serves until then.
func TestServerFarAway(t *testing.T) {
	noLeaks(t)
	const damaged = 200_000
	root, other := t.TempDir(), t.TempDir()
	want := content(6, 300_000)
	for _, dir := range []string{root, other} {
		put(t, dir, "img", storetest.Objects{"pages.lz4": want})
	}
	bad := bytes.Clone(want)
	bad[damaged] ^= 1
	if err := os.WriteFile(filepath.Join(other, "img", "pages.lz4"), bad, 0o600); err != nil {
		t.Fatal(err)
	}
	far, near := serve(t, root), serve(t, other)
	release := make(chan struct{})
	addr := address("img", far.addr, near.addr)
	dial := func(ctx context.Context, s client.Server) (client.Conn, error) {
		if s == addr.Servers[0] {
			select {
			case <-release:
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
		return client.Dial(ctx, s)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, err := client.Open(ctx, addr, client.Options{Timeout: time.Hour, Dial: dial, Logger: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 1000)
	read := func(off int64) bool {
		if err := c.ReadRange(ctx, "pages.lz4", p, off, image.Demand); err != nil {
			t.Fatal(err)
		}
		return bytes.Equal(p, want[off:off+1000])
	}
	for range 3 {
		if !read(0) {
			t.Error("other bytes")
		}
		if read(damaged) {
			t.Fatal("the bytes are not damaged")
		}
		c.Reject("pages.lz4", damaged, 1000, errors.New("damaged"))
	}
	close(release)
	for !read(damaged) && ctx.Err() == nil {
		time.Sleep(time.Millisecond) // no event tells that it is there
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
