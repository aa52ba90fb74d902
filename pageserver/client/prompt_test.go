package client_test

import (
	"bytes"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/store/storetest"
	"github.com/lazyrestore/lazyrestore/pageserver/client"
	"github.com/lazyrestore/lazyrestore/pageserver/proxytest"
)

// soon tries prompt reads of random ranges until n were answered; whatever is
// answered is right.
func soon(t *testing.T, c *client.Client, want []byte, n int) {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	for deadline := time.Now().Add(20 * time.Second); n > 0; {
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
			clear(p) // the race detector sees who writes to it meanwhile
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
	s := serve(t, root, "127.0.0.1:0")
	c := open(t, address("img", s.addr), client.Options{Whole: true})
	soon(t, c, want, 200)
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
	s := serve(t, root, "127.0.0.1:0")
	var log bytes.Buffer
	c := open(t, address("img", s.addr), client.Options{Whole: true, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	soon(t, c, want, 1)
	p := make([]byte, 1000)
	const off = 500_000
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
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

// On a long way no prompt read is answered, and no time lost with trying.
func TestPromptGivesUp(t *testing.T) {
	root := t.TempDir()
	want := content(10, 1<<20)
	put(t, root, "img", storetest.Objects{"pages.lz4": want})
	far := proxytest.Toxic(t, serve(t, root, "127.0.0.1:0").addr, `{"type": "latency", "attributes": {"latency": 10}}`)
	c := open(t, address("img", far), client.Options{Whole: true})
	p := make([]byte, 1000)
	begin := time.Now()
	for range 2000 {
		if ok, err := c.ReadSoon("pages.lz4", p, 0); ok || err != nil {
			t.Fatalf("%v, %v", ok, err)
		}
	}
	if took := time.Since(begin); took > 500*time.Millisecond {
		t.Errorf("2000 tries took %v", took)
	}
	readAll(t, c, "pages.lz4", want)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
