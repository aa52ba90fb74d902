package client_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/store/storetest"
	"github.com/lazyrestore/lazyrestore/pageserver/client"
	"github.com/lazyrestore/lazyrestore/pageserver/proxytest"
	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// content is n bytes that nothing else has.
func content(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// readAll reads all of an object in pieces, from several goroutines in both
// lanes, as a pager does: bytes that are not right are rejected, and what
// cannot be had is tried again until the test's time is over.
func readAll(t *testing.T, c *client.Client, object string, want []byte) {
	t.Helper()
	const piece = 37_000
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var next atomic.Int64
	var wg sync.WaitGroup
	var rejects atomic.Int64
	one := func(i int, lane image.Lane) error {
		off := i * piece
		p := make([]byte, min(piece, len(want)-off))
		for {
			err := c.ReadRange(ctx, object, p, int64(off), lane)
			switch {
			case ctx.Err() != nil:
				return fmt.Errorf("piece %d: %w: %w", i, ctx.Err(), err)
			case err == nil && bytes.Equal(p, want[off:off+len(p)]):
				return nil
			case err == nil:
				rejects.Add(1)
				c.Reject(object, int64(off), int64(len(p)), errors.New("other bytes"))
			case !errors.As(err, new(*client.UnavailableError)) && !errors.Is(err, client.ErrDamaging):
				return fmt.Errorf("piece %d: %w", i, err)
			default:
				time.Sleep(time.Millisecond)
			}
		}
	}
	pieces := (len(want) + piece - 1) / piece
	for g := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 9))
			for {
				i := int(next.Add(1)) - 1
				if i >= pieces {
					return
				}
				err := one(i, image.Background)
				if err == nil && i%4 == 0 {
					err = one(r.IntN(pieces), image.Demand)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d pieces rejected", rejects.Load())
}

// Whatever a network does, what is read is right, or waited for.
func TestFaultyNetwork(t *testing.T) {
	for _, tt := range proxytest.Faults {
		t.Run(tt.Name, func(t *testing.T) {
			root := t.TempDir()
			want := content(1, 3<<20)
			put(t, root, "img", storetest.Objects{"pages.lz4": want})
			s := serve(t, root)
			through := proxytest.Toxic(t, s.addr, tt.Toxic)
			// The second server is the same one: what is lost on the way to one
			// is asked of the other.
			for _, addrs := range [][]string{{through}, {through, s.addr}} {
				c, err := client.Open(t.Context(), address("img", addrs...), client.Options{Logger: testLog(t), Timeout: 500 * time.Millisecond})
				for tries := 0; err != nil && tries < 20; tries++ {
					c, err = client.Open(t.Context(), address("img", addrs...), client.Options{Logger: testLog(t), Timeout: 500 * time.Millisecond})
				}
				if err != nil {
					t.Fatal(err)
				}
				readAll(t, c, "pages.lz4", want)
				if err := c.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// Bits that turn over on the way are found: in messages by the protocol, in
// pages by whoever checks them.
func TestCorruptingProxy(t *testing.T) {
	noLeaks(t)
	root := t.TempDir()
	want := content(2, 3<<20)
	put(t, root, "img", storetest.Objects{"pages.lz4": want})
	s := serve(t, root)
	for _, tt := range []struct {
		name  string
		every int
		alone bool // there is no other server
	}{{"often", 200_000, true}, {"rarely", 700_000, true}, {"often, and another", 20_000, false}} {
		t.Run(tt.name, func(t *testing.T) {
			p := proxytest.Corrupt(t, s.addr, tt.every)
			addrs := []string{p.Addr().String()}
			if !tt.alone {
				addrs = append(addrs, s.addr)
			}
			c := open(t, address("img", addrs...), client.Options{})
			readAll(t, c, "pages.lz4", want)
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			turned := p.Turned()
			t.Logf("%d bits turned over", turned)
			if turned == 0 {
				t.Error("the proxy has not damaged anything")
			}
			// A server that gives damaged bytes is left: it gets no chance to
			// damage much.
			if !tt.alone && turned > 60 {
				t.Errorf("%d bits turned over, although there is another server", turned)
			}
		})
	}
}

// The server is stopped and started anew again and again while many clients
// read: none of them notices but by waiting.
func TestServerRestarts(t *testing.T) {
	noLeaks(t)
	root := t.TempDir()
	want := content(3, 2<<20)
	put(t, root, "img", storetest.Objects{"pages.lz4": want})
	s := serve(t, root)
	var clients []*client.Client
	for range 20 {
		clients = append(clients, open(t, address("img", s.addr), client.Options{Whole: true}))
	}
	var wg sync.WaitGroup
	for _, c := range clients {
		wg.Go(func() { readAll(t, c, "pages.lz4", want) })
	}
	for range 5 {
		s.stop()
		time.Sleep(30 * time.Millisecond) // clients find out, and wait
		s.start(t)
		time.Sleep(60 * time.Millisecond) // some get on with it
	}
	wg.Wait()
	for _, c := range clients {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// An image that was replaced is not ours, whatever its name: its server is no
// longer asked.
func TestReplacedImage(t *testing.T) {
	noLeaks(t)
	root, other := t.TempDir(), t.TempDir()
	want := content(4, 1<<20)
	put(t, root, "img", storetest.Objects{"pages.lz4": want})
	put(t, other, "img", storetest.Objects{"pages.lz4": want})
	s, second := serve(t, root), serve(t, other)
	alone := open(t, address("img", s.addr), client.Options{})
	both := open(t, address("img", s.addr, second.addr), client.Options{})
	s.stop()
	if err := os.Rename(filepath.Join(root, "img"), filepath.Join(root, "old")); err != nil {
		t.Fatal(err)
	}
	put(t, root, "img", storetest.Objects{"pages.lz4": content(5, 1<<20)})
	s.start(t)
	readAll(t, both, "pages.lz4", want)
	err := alone.ReadRange(t.Context(), "pages.lz4", make([]byte, 100), 0, image.Demand)
	if !errors.Is(err, client.ErrOtherImage) {
		t.Errorf("read of a replaced image: %v", err)
	}
	// It comes back.
	s.stop()
	if err := os.Rename(filepath.Join(root, "img"), filepath.Join(root, "new")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(root, "old"), filepath.Join(root, "img")); err != nil {
		t.Fatal(err)
	}
	s.start(t)
	readAll(t, alone, "pages.lz4", want)
	for _, c := range []*client.Client{alone, both} {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// An image that is replaced while its server runs is had on further connections, too, as long
// as one has it.
func TestReplacedImageThatIsOpen(t *testing.T) {
	noLeaks(t)
	root := t.TempDir()
	want := content(4, 1<<20)
	put(t, root, "img", storetest.Objects{"pages.lz4": want})
	s := serve(t, root)
	first := open(t, address("img", s.addr), client.Options{})
	if err := os.Rename(filepath.Join(root, "img"), filepath.Join(root, "old")); err != nil {
		t.Fatal(err)
	}
	put(t, root, "img", storetest.Objects{"pages.lz4": content(5, 1<<20)})
	pinned := open(t, address("img", s.addr), client.Options{Digest: first.Digest()})
	for _, c := range []*client.Client{first, pinned} {
		// In the lane that has no connection yet.
		p := make([]byte, 1<<20)
		if err := c.ReadRange(t.Context(), "pages.lz4", p, 0, image.Background); err != nil || !bytes.Equal(p, want) {
			t.Errorf("in the background: %v, or other bytes", err)
		}
	}
	if fresh := open(t, address("img", s.addr), client.Options{}); fresh.Digest() == first.Digest() {
		t.Error("who wants no certain image has the old one")
	} else if err := fresh.Close(); err != nil {
		t.Error(err)
	}
	for _, c := range []*client.Client{first, pinned} {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// impostor answers every connection with what a test wants, whatever is said.
func impostor(t *testing.T, say func(conn net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				say(conn)
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		wg.Wait()
	})
	return ln.Addr().String()
}

func serverHello(idle uint32) []byte {
	return wire.ServerHello{
		Version: wire.Version, IdleTime: idle,
		Limits: wire.Limits{Read: wire.MinRead, Requests: wire.MinRequests, Images: wire.MinImages},
	}.Append(nil)
}

func opened(objects ...wire.Object) []byte {
	return (&wire.Opened{Image: 1, Objects: objects}).Append(nil, 1)
}

// A server that makes no sense is an error that says so, in time; with another
// server nobody notices.
func TestImpostors(t *testing.T) {
	noLeaks(t)
	root := t.TempDir()
	want := content(6, 300_000)
	put(t, root, "img", storetest.Objects{"pages.lz4": want})
	good := serve(t, root)
	pages := wire.Object{Name: "pages.lz4", Size: 300_000}
	data := func(id uint32, flags uint8, d wire.Data) []byte {
		return append(wire.AppendData(nil, id, flags, d), make([]byte, d.Length)...)
	}
	for _, tt := range []struct {
		name  string
		says  [][]byte
		stays bool // it does not close the connection
		want  error
	}{
		{"nothing", nil, false, io.EOF},
		{"silence", nil, true, client.ErrSilent},
		{"garbage", [][]byte{content(7, 4096)}, true, wire.ErrMalformed},
		{"half a header", [][]byte{serverHello(0)[:9]}, false, io.ErrUnexpectedEOF},
		{"half a hello", [][]byte{serverHello(0)[:30]}, true, client.ErrSilent},
		{"4 GiB", [][]byte{{255, 255, 255, 255, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}}, true, wire.ErrMalformed},
		{"http", [][]byte{[]byte("HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n")}, true, wire.ErrMalformed},
		{"another version", [][]byte{(&wire.Error{Code: wire.CodeVersion, Text: "version 7"}).Append(nil, 0)}, false, nil},
		{"data before the image", [][]byte{serverHello(0), data(2, wire.FlagLast, wire.Data{Size: 10, Length: 10})}, true, nil},
		{"two images", [][]byte{serverHello(0), opened(pages), opened(pages)}, true, nil},
		{"too much data", [][]byte{serverHello(0), opened(pages), data(2, 0, wire.Data{Size: 300_000, Length: 2000})}, true, nil},
		{"other data", [][]byte{serverHello(0), opened(pages), data(2, wire.FlagLast, wire.Data{Offset: 70, Size: 300_000, Length: 1000})}, true, nil},
		{"too little data", [][]byte{serverHello(0), opened(pages), data(2, wire.FlagLast, wire.Data{Size: 300_000, Length: 10})}, true, nil},
		{"half a payload", [][]byte{serverHello(0), opened(pages), data(2, wire.FlagLast, wire.Data{Size: 300_000, Length: 1000})[:500]}, false, io.ErrUnexpectedEOF},
		{"a reply that is a request", [][]byte{serverHello(0), opened(pages), wire.AppendPing(nil, 2)}, true, nil},
		{"it is busy", [][]byte{serverHello(0), opened(pages), (&wire.Error{Code: wire.CodeBusy}).Append(nil, 2)}, true, nil},
		{"it leaves", [][]byte{serverHello(0), opened(pages), wire.AppendGoaway(nil, "bye")}, false, nil},
		{"nobody knows", [][]byte{serverHello(0), opened(pages), (&wire.Error{Code: 999, Text: "?"}).Append(nil, 2)}, true, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			bad := impostor(t, func(conn net.Conn) {
				_, _ = conn.Write(bytes.Join(tt.says, nil))
				if !tt.stays {
					_ = conn.(*net.TCPConn).CloseWrite()
				}
				_, _ = io.Copy(io.Discard, conn) // to close before all is read resets the connection
			})
			const long = 5 * time.Second // which those that are silent here take
			opts := client.Options{Timeout: long, Logger: testLog(t)}
			switch {
			case errors.Is(tt.want, client.ErrSilent):
				opts.Timeout = time.Second
			case tt.want == nil:
				opts.Timeout = 200 * time.Millisecond // in the end it may be silent
			}
			c, err := client.Open(t.Context(), address("img", bad), opts)
			if err == nil {
				err = c.ReadRange(t.Context(), "pages.lz4", make([]byte, 1000), 0, image.Demand)
				if cerr := c.Close(); cerr != nil {
					t.Error(cerr)
				}
			}
			t.Log(err)
			var gone *client.UnavailableError
			if !errors.As(err, &gone) || tt.want != nil && !errors.Is(gone.Servers[0].Err, tt.want) {
				t.Fatalf("error %v, want %v", err, tt.want)
			}
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("error %v says that the image is damaged", err)
			}
			if !strings.Contains(err.Error(), bad) {
				t.Error("the error does not name the server")
			}
			// The impostors that get as far as OPENED have another image.
			opts.Digest, opts.Timeout = digestOf(t, root), long
			c = open(t, address("img", bad, good.addr), opts)
			readAll(t, c, "pages.lz4", want)
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A server that leaves with requests in flight, and falls silent, is given up as any
// other that does; and so is it where the client is closed.
func TestServerThatLeavesInSilence(t *testing.T) {
	noLeaks(t)
	root := t.TempDir()
	want := content(6, 300_000)
	put(t, root, "img", storetest.Objects{"pages.lz4": want})
	good := serve(t, root)
	digest, err := image.ParseDigest(digestOf(t, root))
	if err != nil {
		t.Fatal(err)
	}
	sum, err := hex.DecodeString(strings.TrimPrefix(digest, "sha256:"))
	if err != nil {
		t.Fatal(err)
	}
	reply := wire.Opened{Image: 1, Digest: [32]byte(sum), Objects: []wire.Object{{Name: "pages.lz4", Size: 300_000}}}
	asked := make(chan struct{}, 1)
	bad := impostor(t, func(conn net.Conn) {
		b := make([]byte, 4096)
		for _, say := range [][]byte{append(serverHello(0), reply.Append(nil, 1)...), wire.AppendGoaway(nil, "bye")} {
			if _, err := conn.Read(b); err != nil {
				return
			}
			_, _ = conn.Write(say)
		}
		select {
		case asked <- struct{}{}:
		default:
		}
		_, _ = io.Copy(io.Discard, conn)
	})
	t.Run("lost", func(t *testing.T) {
		c := open(t, address("img", bad, good.addr), client.Options{Timeout: time.Second, Logger: testLog(t)})
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		p := make([]byte, 1000)
		if err := c.ReadRange(ctx, "pages.lz4", p, 0, image.Demand); err != nil || !bytes.Equal(p, want[:1000]) {
			t.Errorf("%v, or other bytes", err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Run("closed", func(t *testing.T) {
		c := open(t, address("img", bad), client.Options{Timeout: time.Minute, Logger: testLog(t)})
		done := make(chan error, 1)
		go func() { done <- c.ReadRange(t.Context(), "pages.lz4", make([]byte, 1000), 0, image.Demand) }()
		<-asked
		closed := make(chan error, 1)
		go func() { closed <- c.Close() }()
		select {
		case err := <-closed:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("it is not closed")
		}
		if err := <-done; !errors.Is(err, client.ErrClosed) {
			t.Errorf("the read: %v", err)
		}
	})
}

func digestOf(t *testing.T, root string) string {
	b, err := os.ReadFile(filepath.Join(root, "img", image.ManifestObject))
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("sha256:%x", sha256.Sum256(b))
}

// A read that is given up leaves its buffer alone.
func TestGivenUp(t *testing.T) {
	root := t.TempDir()
	want := content(8, 8<<20)
	put(t, root, "img", storetest.Objects{"pages.lz4": want})
	s := serve(t, root)
	slow := proxytest.Toxic(t, s.addr, `{"type": "bandwidth", "attributes": {"rate": 20000}}`)
	c := open(t, address("img", slow), client.Options{})
	for i := range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*3*time.Millisecond)
		p := make([]byte, 4<<20)
		err := c.ReadRange(ctx, "pages.lz4", p, 0, image.Demand)
		cancel()
		if err == nil {
			continue
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ReadRange: %v", err)
		}
		clear(p) // the race detector sees who writes to it meanwhile
	}
	readAll(t, c, "pages.lz4", want[:1<<20])
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
