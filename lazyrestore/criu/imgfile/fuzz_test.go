package imgfile_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
)

// What a pagemap parses to is written and parses to the same again.
func FuzzPagemap(f *testing.F) {
	d, pid := dumped(f)
	b, err := os.ReadFile(d.File(imgfile.OfTask(pid).File()))
	must(f, err)
	f.Add(b)
	f.Add(b[:100])
	f.Add(written(f, &imgfile.Pagemap{PagesID: 3, Entries: []imgfile.Entry{
		entry(0x1000, 2, imgfile.Parent), entry(0x3000, 1<<33, imgfile.Lazy), entry(1<<56, 1, imgfile.Present|imgfile.Lazy),
	}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		pm, err := imgfile.ReadPagemap(bytes.NewReader(b), "fuzz")
		if err != nil {
			if !errors.Is(err, imgfile.ErrDamaged) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		again, err := imgfile.ReadPagemap(bytes.NewReader(written(t, pm)), "again")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(joined(pm), joined(again)); diff != "" {
			t.Errorf("(-first +again):\n%s", diff)
		}
	})
}

// joined is pm's entries where neighbours with the same flags are one: very
// long ones are written as several.
func joined(pm *imgfile.Pagemap) (es []imgfile.Entry) {
	for _, e := range pm.Entries {
		if n := len(es); n > 0 && es[n-1].End == e.Start && es[n-1].Flags == e.Flags {
			es[n-1].End = e.End
			continue
		}
		es = append(es, e)
	}
	return es
}

// Whatever the files of a set hold, reading them ends, with an error that says
// that they are damaged if it is one.
func FuzzSet(f *testing.F) {
	d, _ := dumped(f)
	files, err := filepath.Glob(d.File("*.img"))
	must(f, err)
	for _, name := range files {
		b, err := os.ReadFile(name)
		must(f, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		d, err := imgfile.Open(dir)
		must(t, err)
		for _, name := range []string{"pstree.img", "inventory.img", "mm-1.img", "pagemap-1.img"} {
			must(t, os.WriteFile(d.File(name), b, 0o600))
		}
		check := func(what string, err error) {
			if err != nil && !errors.Is(err, imgfile.ErrDamaged) {
				t.Errorf("%s: error of another kind: %v", what, err)
			}
		}
		_, err = d.Tasks()
		check("tasks", err)
		_, err = d.Inventory()
		check("inventory", err)
		_, err = d.VMAs(1)
		check("VMAs", err)
		_, err = d.Memory(imgfile.OfTask(1))
		check("memory", err)
	})
}

// A length that lies costs no memory: 128 MiB are announced, three bytes come.
func TestLongRecordIsNotBelieved(t *testing.T) {
	b := []byte{0x19, 0x43, 0x56, 0x54, 0x25, 0x40, 0x08, 0x56, 0, 0, 0, 8, 1, 2, 3}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r, err := imgfile.NewReader(bytes.NewReader(b), "lie", imgfile.MagicPagemap)
	must(t, err)
	if _, err := r.Next(); !errors.Is(err, imgfile.ErrDamaged) {
		t.Errorf("error %v, want ErrDamaged", err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Errorf("%d bytes allocated", n)
	}
}
