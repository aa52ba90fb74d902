package client_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/store/storetest"
	"github.com/lazyrestore/lazyrestore/pageserver/client"
)

// What one server gives damaged is asked of the other, whichever of them has given more
// damaged bytes before, of other parts.
func TestRejectedIsAskedOfTheOther(t *testing.T) {
	const piece, object = 64 << 10, "pages.lz4"
	want := content(1, 3<<20)
	site := func(bad ...int) *running {
		root := t.TempDir()
		put(t, root, "img", storetest.Objects{object: want})
		b := bytes.Clone(want)
		for _, i := range bad {
			b[i*piece] ^= 1
		}
		if err := os.WriteFile(filepath.Join(root, "img", object), b, 0o600); err != nil {
			t.Fatal(err)
		}
		return serve(t, root)
	}
	first, second := site(0, 1, 2, 3, 4, 5), site(20)
	c, err := client.Open(t.Context(), address("img", first.addr, second.addr), client.Options{Logger: testLog(t), Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p := make([]byte, piece)
	// read is one try: damaged tells that it gave other bytes, which are rejected.
	read := func(i int) (damaged bool, err error) {
		off := int64(i) * piece
		err = c.ReadRange(t.Context(), object, p, off, image.Demand)
		damaged = err == nil && !bytes.Equal(p, want[off:off+piece])
		if damaged {
			c.Reject(object, off, piece, errors.New("other bytes"))
		}
		return damaged, err
	}
	second.stop()
	for i := range 6 {
		if damaged, err := read(i); !damaged || err != nil {
			t.Fatalf("piece %d of a damaged server: damaged: %v, %v", i, damaged, err)
		}
	}
	second.start(t)
	for _, i := range []int{0, 20, 1, 20} {
		damaged := 0
		for limit := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			bad, err := read(i)
			if bad {
				damaged++
			} else if err == nil {
				break
			}
			if time.Now().After(limit) {
				t.Fatalf("piece %d: %v", i, err)
			}
		}
		if damaged > 1 && i == 20 {
			t.Errorf("the damaged piece %d was asked of the same server again, %d times", i, damaged-1)
		}
	}
}
