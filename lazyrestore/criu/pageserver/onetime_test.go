package pageserver

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
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

// Whoever is killed while a set takes the place of another one leaves no pagemap of that
// with pages of this, nor does one stay of a task that is in that alone. Where it fails,
// nothing is left.
func TestReplacedSetIsOfOneTime(t *testing.T) {
	dir := t.TempDir()
	receive := func(tasks int, commit func(*Files) error) error {
		f, err := NewFiles(dir, "")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Abort()
		for i := range tasks {
			if err := f.Begin(t.Context(), imgfile.OfTask(i+1)); err != nil {
				t.Fatal(err)
			}
			e := imgfile.Entry{Range: page.RangeOf(0x10000, page.Size), Flags: imgfile.Present}
			if err := f.Add(t.Context(), e, bytes.NewReader(content(uint64(tasks), e.Start, 1))); err != nil {
				t.Fatal(err)
			}
		}
		return commit(f)
	}
	whole := func(f *Files) error { return f.Commit(t.Context()) }
	killed := func(f *Files) error { return errors.Join(f.end(), f.place()) }
	has := func(want ...uint64) {
		t.Helper()
		d, err := imgfile.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		ids, err := d.Memories()
		if err != nil {
			t.Fatal(err)
		}
		var got []uint64
		for _, id := range ids {
			got = append(got, id.ID)
		}
		if !slices.Equal(got, want) {
			t.Errorf("pagemaps of %v are there, want %v", got, want)
		}
	}
	if err := receive(3, whole); err != nil {
		t.Fatal(err)
	}
	has(1, 2, 3)
	inTheWay := filepath.Join(dir, imgfile.PagesName(firstPagesID+1))
	if err := errors.Join(os.Remove(inTheWay), os.Mkdir(inTheWay, 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := receive(3, killed); err == nil {
		t.Fatal("no error")
	}
	has(1)
	if err := receive(3, whole); err == nil {
		t.Fatal("no error")
	}
	has()
	if _, err := os.Stat(filepath.Join(dir, imgfile.PagesName(firstPagesID))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("pages of a dump that failed: %v", err)
	}
	if err := os.Remove(inTheWay); err != nil {
		t.Fatal(err)
	}
	if err := receive(3, whole); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, imgfile.OfTask(1).File()), filepath.Join(dir, imgfile.OfTask(9).File())); err != nil {
		t.Fatal(err)
	}
	if err := receive(1, whole); err != nil {
		t.Fatal(err)
	}
	has(1, 2, 3)
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
