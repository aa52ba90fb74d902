package client_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/store/storetest"
	"github.com/lazyrestore/lazyrestore/pageserver/client"
	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// patience is for what will never come.
const patience = 20 * time.Second

// soon tries prompt reads of random ranges until n were answered; whatever is
// answered is right.
func soon(t *testing.T, c *client.Client, want []byte, n int) {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	for deadline := time.Now().Add(patience); n > 0; {
		if time.Now().After(deadline) {
			t.Fatalf("%d prompt reads are not answered", n)
		}
		size := 1 + r.IntN(60_000)
		off := r.IntN(len(want) - size)
		p := make([]byte, size)
		ok, err := c.ReadSoon("pages.lz4", p, int64(off))
		switch {
		case err != nil:
			t.Fatal(err)
		case !ok:
			time.Sleep(time.Millisecond)
		case !bytes.Equal(p, want[off:off+size]):
			t.Fatalf("%d bytes at %d differ", size, off)
		default:
			n--
		}
	}
}

// Prompt reads are answered, also after late replies and when the server was
// started anew.
func TestPrompt(t *testing.T) {
	noLeaks(t)
	root := t.TempDir()
	want := content(9, 2<<20)
	put(t, root, "img", storetest.Objects{"pages.lz4": want})
	s := serve(t, root)
	c := open(t, address("img", s.addr), client.Options{Whole: true})
	c.PromptWithin(patience)
	soon(t, c, want, 200)
	c.PromptWithin(1)
	for range 3 {
		p := make([]byte, 50_000)
		if ok, err := c.ReadSoon("pages.lz4", p, 7); err != nil || ok && !bytes.Equal(p, want[7:7+len(p)]) {
			t.Errorf("in no time: %v, or other bytes", err)
		}
		clear(p) // the race detector sees who writes to it meanwhile
	}
	c.PromptWithin(patience)
	soon(t, c, want, 20)
	s.stop()
	if ok, err := c.ReadSoon("pages.lz4", make([]byte, 10), 0); ok || err != nil {
		t.Errorf("without a server: %v, %v", ok, err)
	}
	s.start(t)
	readAll(t, c, "pages.lz4", want) // the lane finds the server
	soon(t, c, want, 200)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// Who gave damaged bytes promptly is known.
func TestPromptRejected(t *testing.T) {
	root := t.TempDir()
	want := content(11, 1<<20)
	put(t, root, "img", storetest.Objects{"pages.lz4": want})
	s := serve(t, root)
	var log bytes.Buffer
	c := open(t, address("img", s.addr), client.Options{Whole: true, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	c.PromptWithin(patience)
	soon(t, c, want, 1)
	p := make([]byte, 1000)
	const off = 500_000
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if ok, err := c.ReadSoon("pages.lz4", p, off); ok {
			break
		} else if err != nil || time.Now().After(deadline) {
			t.Fatalf("no prompt read is answered: %v", err)
		}
	}
	c.Reject("pages.lz4", off, int64(len(p)), errors.New("other bytes"))
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if !strings.Contains(log.String(), s.addr) || !strings.Contains(log.String(), "damaged") {
		t.Errorf("the log does not say who gave damaged bytes:\n%s", log.String())
	}
}

// Where replies do not come in time none is waited for, and no time lost with trying:
// it is asked a few times, and then once a second.
func TestPromptGivesUp(t *testing.T) {
	root := t.TempDir()
	want := content(10, 1<<20)
	put(t, root, "img", storetest.Objects{"pages.lz4": want})
	h := holdUp(t, serve(t, root).addr)
	c := open(t, address("img", h.Addr().String()), client.Options{Whole: true})
	c.PromptWithin(patience)
	soon(t, c, want, 1)
	c.PromptWithin(0)
	h.unheard(t, c)
	readAll(t, c, "pages.lz4", want)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// unheard reads promptly while nothing that the server says is heard.
func (h *holdup) unheard(t *testing.T, c *client.Client) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock() // also if the test ends here: what passes on waits for it
	before, begin := h.asked.Load(), time.Now()
	p := make([]byte, 1000)
	for range 2000 {
		if ok, err := c.ReadSoon("pages.lz4", p, 0); ok || err != nil {
			t.Fatalf("%v, %v", ok, err)
		}
	}
	took := time.Since(begin)
	size := int64(len(wire.Read{Object: "pages.lz4"}.Append(nil, 0, 0)))
	tries := func() int64 { return (h.asked.Load() - before) / size }
	for deadline := time.Now().Add(patience); tries() == 0 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
	}
	if n, most := tries(), 6+int64(took/time.Second); n == 0 || n > most {
		t.Errorf("within %v it was asked %d times, want 1 to %d", took, n, most)
	}
}

// A holdup passes on what a server says while mu is free, and counts what it is told.
type holdup struct {
	net.Listener
	mu    sync.Mutex
	asked atomic.Int64 // bytes
}

func holdUp(t *testing.T, server string) *holdup {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &holdup{Listener: ln}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			down, err := ln.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", server)
			if err != nil {
				_ = down.Close()
				continue
			}
			// Before the cleanups, which wait for what passes on: a test that fails leaves
			// its client open.
			context.AfterFunc(t.Context(), func() {
				_ = down.Close()
				_ = up.Close()
			})
			wg.Go(func() { h.pass(up, down, func(n int) { h.asked.Add(int64(n)) }) })
			wg.Go(func() {
				h.pass(down, up, func(int) {
					h.mu.Lock()
					defer h.mu.Unlock()
				})
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		wg.Wait()
	})
	return h
}

// pass passes on what comes, of which it tells first how much there is.
func (h *holdup) pass(to, from net.Conn, comes func(n int)) {
	defer to.Close()
	defer from.Close()
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		comes(n)
		if _, werr := to.Write(b[:n]); err != nil || werr != nil {
			return
		}
	}
}
