package client_test

import (
	"bytes"
	"runtime"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/store/storetest"
	"github.com/lazyrestore/lazyrestore/pageserver/client"
)

// Reading on from place to place, by two at once, takes no new memory for each
// byte, and no memory is used again that somebody still reads.
func TestReadingOnUsesMemoryAgain(t *testing.T) {
	noLeaks(t)
	const size, part = 64 << 20, 192 << 10
	root := t.TempDir()
	want := content(11, size)
	put(t, root, "img", storetest.Objects{"pages.lz4": want})
	c := open(t, address("img", serve(t, root).addr), client.Options{})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	next := make(chan int)
	ended := make(chan error, 2)
	for range cap(ended) {
		go func() {
			p := make([]byte, part)
			var failed error
			for off := range next {
				q := p[:min(part, size-off)]
				if err := c.ReadRange(t.Context(), "pages.lz4", q, int64(off), image.Background); err != nil {
					failed = err
				} else if !bytes.Equal(q, want[off:off+len(q)]) {
					t.Errorf("%d bytes at %d differ", len(q), off)
				}
			}
			ended <- failed
		}()
	}
	for off := 0; off < size; off += part {
		next <- off
	}
	close(next)
	for range cap(ended) {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > size/2 {
		t.Errorf("%d MiB were allocated to read %d", took>>20, size>>20)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
