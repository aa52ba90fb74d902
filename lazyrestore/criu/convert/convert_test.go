package convert

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pageset"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

const (
	lazy    = imgfile.Present | imgfile.Lazy
	present = imgfile.Present
	parent  = imgfile.Parent | imgfile.Lazy
)

// An extent is pages of a made-up set: their content tells where they were
// written, or they are zero.
type extent struct {
	at    page.Addr
	pages int
	flags imgfile.Flags
	zero  bool
}

// bytes are the pages of an extent, for a set with that number.
func (e extent) bytes(set int) []byte {
	b := make([]byte, e.pages<<page.Shift)
	if e.zero {
		return b
	}
	rnd := rand.New(rand.NewPCG(uint64(set), uint64(e.at)))
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rnd.Uint64()&0x0f0f_0f0f_0f0f_0f0f)
	}
	return b
}

// add writes the memory of id into the set in dir.
func add(t *testing.T, dir string, set int, id imgfile.MemoryID, pagesID uint32, extents ...extent) {
	t.Helper()
	d, err := imgfile.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	w, err := d.CreateMemory(id, pagesID)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range extents {
		if e.flags&imgfile.Present != 0 {
			err = w.WriteBytes(e.at, e.flags, e.bytes(set))
		} else {
			err = w.Add(imgfile.Entry{Range: page.RangeOf(e.at, uint64(e.pages)<<page.Shift), Flags: e.flags})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// load is the files of a directory.
func load(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		if files[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

func importSet(t *testing.T, dir string) (*imagetest.Mem, error) {
	t.Helper()
	d, err := imgfile.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	mem := new(imagetest.Mem)
	w, err := image.NewWriter(mem, image.WriterOptions{Spec: chunk.Spec{Codec: chunk.LZ4}})
	if err != nil {
		t.Fatal(err)
	}
	m, err := Import(context.Background(), d, w)
	if err != nil {
		w.Abort()
		return nil, err
	}
	if _, err := w.Finish(context.Background(), m); err != nil {
		t.Fatal(err)
	}
	return mem, nil
}

func exportImage(t *testing.T, mem *imagetest.Mem) (map[string][]byte, error) {
	t.Helper()
	im, err := image.Open(context.Background(), mem, image.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	out := new(imagetest.Mem)
	err = Export(context.Background(), im, out)
	return objects(out), err
}

// objects is all that mem holds.
func objects(mem *imagetest.Mem) map[string][]byte {
	all := map[string][]byte{}
	for _, name := range mem.Names() {
		all[name] = mem.Get(name)
	}
	return all
}

func same(t *testing.T, got, want map[string][]byte) {
	t.Helper()
	for name, b := range want {
		if !bytes.Equal(got[name], b) {
			t.Errorf("%s: %d bytes came back as %d, or others", name, len(b), len(got[name]))
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s came from nowhere", name)
		}
	}
}

// madeSet is a set of two tasks and a shared object, with all that there is.
func madeSet(t *testing.T) string {
	dir := t.TempDir()
	add(t, dir, 1, imgfile.OfTask(7), 2,
		extent{0x40_0000, 3, present, false}, extent{0x50_0000, 700, lazy, false}, extent{0x90_0000, 40, lazy, true},
		extent{0x7fff_0000_0000, 1, lazy, false}, extent{0x7fff_0000_1000, 2, present, true}, extent{0x7fff_0000_3000, 9, lazy, false})
	add(t, dir, 1, imgfile.OfTask(8), 65539, extent{0x50_0000, 5, lazy, false})
	add(t, dir, 1, imgfile.MemoryID{Kind: imgfile.SharedMemory, ID: 99}, 1, extent{0, 300, present, false})
	write(t, dir, "registers.img", "registers")
	write(t, dir, "descriptors.json", "[]")
	return dir
}

func TestRoundTrip(t *testing.T) {
	dir := madeSet(t)
	l, err := net.Listen("unix", filepath.Join(dir, "lazy-pages.socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	mem, err := importSet(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	made := objects(mem)
	if n, want := len(made["pages-2.img"]), 5<<page.Shift; n != want {
		t.Errorf("pages-2.img of the image has %d bytes, the pages that are not lazy %d", n, want)
	}
	if string(made["registers.img"]) != "registers" {
		t.Error("registers.img is not in the image")
	}
	got, err := exportImage(t, mem)
	if err != nil {
		t.Fatal(err)
	}
	same(t, got, load(t, dir))
}

// What an image has of a set is what imgfile says where it is.
func TestLazyPagesAreWhereImgfileSays(t *testing.T) {
	mem, err := importSet(t, madeSet(t))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, b := range objects(mem) {
		write(t, dir, name, string(b))
	}
	d, err := imgfile.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	im, err := image.Open(context.Background(), mem, image.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ix, err := im.LoadIndex(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	m, err := d.Memory(imgfile.OfTask(7))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range m.Runs {
		if r.Lazy && r.File != imgfile.Elsewhere {
			t.Errorf("%v: in a file", r.Range)
		}
	}
	pm, err := d.Pagemap(imgfile.OfTask(7))
	if err != nil {
		t.Fatal(err)
	}
	frames := im.NewFrameReader(ix)
	defer frames.Close()
	seen := 0
	for r, err := range pm.InImage("pagemap-7.img") {
		if err != nil {
			t.Fatal(err)
		}
		if r.Flags&imgfile.Lazy == 0 {
			continue
		}
		at := r.At
		run, ok := ix.Lookup(at)
		if r.Start == 0x90_0000 {
			if ok {
				t.Errorf("%v: zero pages are stored", r.Range)
			}
			continue
		}
		plain, err := frames.Read(context.Background(), int(run.Frame), image.Demand)
		if !ok || err != nil {
			t.Fatalf("%v: %v %v", r.Range, ok, err)
		}
		in := int(run.Offset)<<page.Shift + int(at-run.Page)
		want := extent{at: r.Start, pages: int(r.Pages())}.bytes(1)
		if !bytes.Equal(plain[in:in+page.Size], want[:page.Size]) {
			t.Errorf("%v: other bytes", r.Range)
		}
		seen++
	}
	if seen != 3 {
		t.Errorf("%d runs of lazy pages", seen)
	}
}

// A chain becomes one set, with each page from where the chain has it.
func TestChain(t *testing.T) {
	top := t.TempDir()
	for _, d := range []string{"1", "2", "3"} {
		if err := os.Mkdir(filepath.Join(top, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	link := func(dir, to string) {
		if err := os.Symlink(to, filepath.Join(top, dir, imgfile.ParentLink)); err != nil {
			t.Fatal(err)
		}
	}
	first, second, third := filepath.Join(top, "1"), filepath.Join(top, "2"), filepath.Join(top, "3")
	add(t, first, 1, imgfile.OfTask(7), 1, extent{0x10000, 16, lazy, false})
	link("2", "../1")
	add(t, second, 2, imgfile.OfTask(7), 1, extent{0x10000, 4, parent, false}, extent{0x14000, 4, lazy, false}, extent{0x18000, 8, parent, false})
	link("3", "../2")
	add(t, third, 3, imgfile.OfTask(7), 1, extent{0x10000, 2, parent, false}, extent{0x12000, 1, lazy, false}, extent{0x13000, 7, parent, false})
	mem, err := importSet(t, third)
	if err != nil {
		t.Fatal(err)
	}
	got, err := exportImage(t, mem)
	if err != nil {
		t.Fatal(err)
	}
	one := extent{0x10000, 16, lazy, false}.bytes(1)
	want := slices.Clone(one[:10<<page.Shift])
	copy(want[2<<page.Shift:], extent{0x12000, 1, lazy, false}.bytes(3))
	copy(want[4<<page.Shift:], extent{0x14000, 4, lazy, false}.bytes(2))
	if !bytes.Equal(got["pages-1.img"], want) {
		t.Error("the pages of the chain came out differently")
	}
	pm, err := imgfile.ReadPagemap(bytes.NewReader(got["pagemap-7.img"]), "pagemap-7.img")
	if err != nil {
		t.Fatal(err)
	}
	whole := []imgfile.Entry{{Range: page.RangeOf(0x10000, 10<<page.Shift), Flags: lazy}}
	if !slices.Equal(pm.Entries, whole) {
		t.Errorf("pagemap: %v", pm.Entries)
	}
}

// cut puts the first n bytes of a file of a real dump into a set.
func cut(t *testing.T, dir, name string, n int) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../imgfile/testdata/dump", name))
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, name, string(b[:n]))
}

func TestImportRefuses(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(dir string)
		want  error
	}{
		{"no set", func(dir string) { os.Remove(filepath.Join(dir, "pagemap-7.img")) }, ErrUnfit},
		{"short pages", func(dir string) { os.Truncate(filepath.Join(dir, "pages-1.img"), 4096) }, imgfile.ErrDamaged},
		{"long pages", func(dir string) { os.Truncate(filepath.Join(dir, "pages-1.img"), 1<<20) }, imgfile.ErrDamaged},
		{"no pages", func(dir string) { os.Remove(filepath.Join(dir, "pages-1.img")) }, fs.ErrNotExist},
		{"a directory", func(dir string) { os.Mkdir(filepath.Join(dir, "sub"), 0o700) }, ErrUnfit},
		{"an image", func(dir string) { write(t, dir, image.ManifestObject, "{}") }, ErrUnfit},
		{"a lazy dump", func(dir string) {
			add(t, dir, 1, imgfile.OfTask(7), 1, extent{0x10000, 2, imgfile.Lazy, false})
		}, ErrUnfit},
		{"a lazy dump below", func(dir string) {
			below := filepath.Join(dir, "..", "below")
			if err := errors.Join(os.Mkdir(below, 0o700), os.Symlink("../below", filepath.Join(dir, imgfile.ParentLink))); err != nil {
				t.Fatal(err)
			}
			add(t, below, 1, imgfile.OfTask(7), 1, extent{0x10000, 2, lazy, false}, extent{0x12000, 2, imgfile.Lazy, false})
			add(t, dir, 1, imgfile.OfTask(7), 1, extent{0x11000, 3, parent, false})
		}, ErrUnfit},
		{"a shared pages file", func(dir string) {
			add(t, dir, 1, imgfile.OfTask(8), 1, extent{0x10000, 2, lazy, false})
		}, ErrUnfit},
		{"a parent that is not there", func(dir string) {
			add(t, dir, 1, imgfile.OfTask(7), 1, extent{0x10000, 2, parent, false})
		}, imgfile.ErrDamaged},
		{"a cut inventory", func(dir string) { cut(t, dir, "inventory.img", 40) }, imgfile.ErrDamaged},
		{"an inventory without its record", func(dir string) { cut(t, dir, "inventory.img", 4) }, imgfile.ErrDamaged},
		{"an empty inventory", func(dir string) { cut(t, dir, "inventory.img", 0) }, imgfile.ErrDamaged},
		{"no inventory", func(dir string) { cut(t, dir, "pstree.img", 30) }, fs.ErrNotExist},
		{"a cut process tree", func(dir string) { cut(t, dir, "pstree.img", 20) }, imgfile.ErrDamaged},
		{"a task twice", func(dir string) {
			cut(t, dir, "pstree.img", 30)
			b, err := os.ReadFile(filepath.Join(dir, "pstree.img"))
			if err != nil {
				t.Fatal(err)
			}
			write(t, dir, "pstree.img", string(b)+string(b[8:30]))
		}, imgfile.ErrDamaged},
		{"registers of another kind", func(dir string) { write(t, dir, "core-7.img", "registers") }, imgfile.ErrDamaged},
		{"files of no kind", func(dir string) { write(t, dir, "files.img", "") }, imgfile.ErrDamaged},
		{"two records for one", func(dir string) {
			write(t, dir, "ids-7.img", "\x19\x43\x56\x54abcd\x02\x00\x00\x00\x08\x01\x02\x00\x00\x00\x08\x01")
		}, imgfile.ErrDamaged},
		{"no message", func(dir string) { write(t, dir, "fs-7.img", "\x19\x43\x56\x54abcd\x02\x00\x00\x00\x08\x80") }, imgfile.ErrDamaged},
		{"a cut pagemap", func(dir string) { os.Truncate(filepath.Join(dir, "pagemap-7.img"), 20) }, imgfile.ErrDamaged},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "set")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			add(t, dir, 1, imgfile.OfTask(7), 1, extent{0x10000, 2, lazy, false})
			c.spoil(dir)
			if _, err := importSet(t, dir); !errors.Is(err, c.want) {
				t.Errorf("%v", err)
			}
		})
	}
}

// An export gives all that was imported, or an error.
func TestExportOfDamagedImage(t *testing.T) {
	whole, err := importSet(t, madeSet(t))
	if err != nil {
		t.Fatal(err)
	}
	for name := range objects(whole) {
		if name == image.ManifestObject || len(objects(whole)[name]) == 0 {
			continue
		}
		t.Run(name, func(t *testing.T) {
			mem := new(imagetest.Mem)
			for n, b := range objects(whole) {
				b = slices.Clone(b)
				if n == name {
					b[len(b)/2] ^= 1
				}
				mem.Set(n, b)
			}
			_, err := exportImage(t, mem)
			if !errors.Is(err, image.ErrDamaged) {
				t.Errorf("a changed bit: %v", err)
			}
		})
	}
}

func TestExportRefusesNativeImage(t *testing.T) {
	mem := new(imagetest.Mem)
	w, err := image.NewWriter(mem, image.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Object(image.ProcessObject); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Finish(context.Background(), image.Manifest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := exportImage(t, mem); !errors.Is(err, ErrUnfit) {
		t.Errorf("%v", err)
	}
}

// A Reader gives each page the same from files and from an image.
func TestPagesetOfBoth(t *testing.T) {
	dir := madeSet(t)
	d, err := imgfile.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	mem, err := importSet(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	im, err := image.Open(context.Background(), mem, image.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ofImage, err := pageset.OfImage(context.Background(), im)
	if err != nil {
		t.Fatal(err)
	}
	ofFiles, err := pageset.OfFiles(d)
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]*pageset.Set{"files": ofFiles, "image": ofImage} {
		m, err := s.Memory(context.Background(), imgfile.OfTask(7))
		if err != nil {
			t.Fatal(err)
		}
		r := s.NewReader()
		p := make([]byte, 3<<page.Shift)
		for _, e := range []extent{{0x40_0000, 3, present, false}, {0x90_0000, 40, lazy, true}, {0x7fff_0000_1000, 2, present, true}, {0x7fff_0000_3000, 9, lazy, false}} {
			if err := r.Read(context.Background(), m, e.at, p[:min(e.pages, 3)<<page.Shift], image.Demand); err != nil {
				t.Errorf("%s: %v", name, err)
			} else if !bytes.HasPrefix(e.bytes(1), p[:min(e.pages, 3)<<page.Shift]) {
				t.Errorf("%s: page %s differs", name, e.at)
			}
		}
		if err := r.Read(context.Background(), m, 0x40_3000, p[:page.Size], image.Demand); !errors.Is(err, pageset.ErrNoPage) {
			t.Errorf("%s: a page that is not there: %v", name, err)
		}
		if got := m.Extent(page.RangeOf(0x7fff_0000_0000, 1<<30)); got.Pages() != 12 {
			t.Errorf("%s: extent %v", name, got)
		}
		if got := m.Extent(page.RangeOf(0x40_3000, 1<<30)); !got.Empty() {
			t.Errorf("%s: extent %v of nothing", name, got)
		}
		if _, err := s.Memory(context.Background(), imgfile.OfTask(9)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: memory of nobody: %v", name, err)
		}
		r.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// What is below in a chain comes late where its VMA may, to the page.
func TestStanding(t *testing.T) {
	at := func(from, to page.Addr, f imgfile.Flags) imgfile.Entry {
		return imgfile.Entry{Range: page.Range{Start: from << page.Shift, End: to << page.Shift}, Flags: f}
	}
	late := page.SetOf(page.Range{Start: 12 << page.Shift, End: 14 << page.Shift}, page.Range{Start: 20 << page.Shift, End: 40 << page.Shift})
	got := standing([]imgfile.Entry{
		at(1, 3, lazy), at(3, 4, present), at(10, 16, imgfile.Parent), at(16, 17, present),
		at(19, 22, imgfile.Parent), at(22, 23, lazy), at(23, 24, parent), at(50, 51, parent), at(51, 52, imgfile.Parent),
	}, &late)
	want := []imgfile.Entry{
		at(1, 3, imgfile.Lazy), at(3, 4, present), at(10, 12, present), at(12, 14, imgfile.Lazy), at(14, 17, present),
		at(19, 20, present), at(20, 24, imgfile.Lazy), at(50, 51, imgfile.Lazy), at(51, 52, present),
	}
	if !slices.Equal(got, want) {
		t.Errorf("%v\nnot %v", got, want)
	}
}
