package pageserver

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pagexfer"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// Pages of a dump that went into the directory after the server had started are given
// to nobody, whichever tasks were asked for before.
func TestServeSetOfOneTime(t *testing.T) {
	dir := made(t, 2, 1)
	long(t, dir)
	l := serve(t, setIn(t, dir), Options{})
	c := pagexfer.NewClient(dial(t, l, pagexfer.V41).conn, pagexfer.V41)
	if got := fetch(t, c, 1, page.RangeOf(0x10000, page.Size)); !bytes.Equal(got, content(1, 0x10000, 1)) {
		t.Fatal("a page differs")
	}
	d, err := imgfile.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		w, err := d.CreateMemory(imgfile.OfTask(i+1), uint32(i+1))
		if err == nil {
			err = w.WriteBytes(0x10000, imgfile.Lazy, content(9, 0x10000, 11))
		}
		if err == nil {
			err = w.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for pid := range uint64(2) {
		c := dial(t, l, pagexfer.V41)
		c.send(pagexfer.Header{Command: pagexfer.Get, Pages: 1, Addr: 0x10000, ID: pid + 1})
		if _, err := io.ReadFull(c.conn, make([]byte, 1)); err == nil {
			t.Errorf("task %d is given", pid+1)
		}
	}
}

// long has the files of a set be written long ago: what is written to twice within a
// few milliseconds may have one time of writing.
func long(t *testing.T, dir string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.img"))
	for _, name := range names {
		if err == nil {
			err = os.Chtimes(name, time.Unix(1, 0), time.Unix(1, 0))
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}
