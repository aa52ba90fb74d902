package imgfile_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// dumped is the set in testdata/dump: files of a dump by CRIU 4.1.1 of a
// process with 8 MiB of private memory, of which every third page was never
// touched, and 8 MiB of shared memory.
func dumped(t testing.TB) (d *imgfile.Dir, pid int) {
	t.Helper()
	d, err := imgfile.Open(filepath.Join("testdata", "dump"))
	if err != nil {
		t.Fatal(err)
	}
	tasks, err := d.Tasks()
	if err != nil {
		t.Fatal(err)
	}
	return d, tasks[0].Pid
}

func TestReadsADumpOfCRIU(t *testing.T) {
	d, pid := dumped(t)
	tasks, err := d.Tasks()
	if err != nil {
		t.Fatal(err)
	}
	want := []imgfile.Task{{Pid: pid, Group: pid, Session: pid, Threads: []int{pid}}}
	if diff := cmp.Diff(want, tasks); diff != "" {
		t.Errorf("tasks (-want +got):\n%s", diff)
	}
	inv, err := d.Inventory()
	if err != nil {
		t.Fatal(err)
	}
	if inv.GetImgVersion() != 2 {
		t.Errorf("image version %d, want 2", inv.GetImgVersion())
	}
	vmas, err := d.VMAs(pid)
	if err != nil {
		t.Fatal(err)
	}
	var private, shared *imgfile.VMA
	for i, v := range vmas {
		if i > 0 && v.Start < vmas[i-1].End {
			t.Errorf("VMA %v begins before the one before ends", v.Range)
		}
		if v.Len() != 8<<20 {
			continue
		}
		switch {
		case v.Status&imgfile.VMAAnonPrivate != 0:
			private = &vmas[i]
		case v.Status&imgfile.VMAMemfd != 0: // as CRIU takes it since 3.15
			shared = &vmas[i]
		}
	}
	if private == nil || shared == nil {
		t.Fatalf("the two mappings of 8 MiB are not among the VMAs: %+v", vmas)
	}
	m, err := d.Memory(imgfile.OfTask(pid))
	if err != nil {
		t.Fatal(err)
	}
	if pages := lazyPages(m, private.Range); pages != 1365 {
		t.Errorf("%d lazy pages in private memory, want 1365: two of three of 2048", pages)
	}
	if pages := lazyPages(m, shared.Range); pages != 0 {
		t.Errorf("%d lazy pages in shared memory, want 0", pages)
	}
	m, err = d.Memory(imgfile.MemoryID{Kind: imgfile.SharedMemory, ID: 35414})
	if err != nil {
		t.Fatal(err)
	}
	var pages uint64
	for _, r := range m.Runs {
		pages += r.Pages()
	}
	if pages != 2048 {
		t.Errorf("%d pages of shared memory, want 2048", pages)
	}
}

// lazyPages counts lazy pages of m in r that lie in the first file.
func lazyPages(m *imgfile.Memory, r page.Range) (n uint64) {
	for _, run := range m.Runs {
		if run.Lazy && run.File == 0 {
			n += run.Intersect(r).Pages()
		}
	}
	return n
}

// A pagemap that CRIU has written is written the same by us, to the byte.
func TestPagemapIsWrittenAsCRIUDoes(t *testing.T) {
	d, pid := dumped(t)
	want, err := os.ReadFile(d.File(imgfile.OfTask(pid).File()))
	if err != nil {
		t.Fatal(err)
	}
	pm, err := d.Pagemap(imgfile.OfTask(pid))
	if err != nil {
		t.Fatal(err)
	}
	if got := written(t, pm); !bytes.Equal(got, want) {
		t.Errorf("%d bytes, and not those of CRIU's %d", len(got), len(want))
	}
}

// written is pm as a file.
func written(t testing.TB, pm *imgfile.Pagemap) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := imgfile.NewPagemapWriter(&b, pm.PagesID)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range pm.Entries {
		if err := w.Write(e); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// A page of the chains below: in which set it was written, and with what.
type content struct {
	set  int // 0 is the newest; none is -1
	fill byte
	lazy bool
}

// Chains of sets made from a model give back what the model says, for every page.
func TestMemoryFollowsTheChain(t *testing.T) {
	const base, pages = page.Addr(0x7000_0000_0000), 40
	id := imgfile.OfTask(77)
	root := t.TempDir()
	trial := 0
	rapid.Check(t, func(rt *rapid.T) {
		trial++
		sets := rapid.IntRange(1, 4).Draw(rt, "sets")
		want := make([]content, pages)
		for i := range want {
			// A page lives from a set on: every newer one says "parent".
			want[i] = content{
				set:  rapid.IntRange(-1, sets-1).Draw(rt, "set"),
				fill: byte(rapid.IntRange(1, 255).Draw(rt, "fill")),
				lazy: rapid.Bool().Draw(rt, "lazy"),
			}
		}
		dir := filepath.Join(root, strconv.Itoa(trial))
		for set := range sets {
			writeSet(rt, filepath.Join(dir, strconv.Itoa(set)), id, set, sets, base, want)
		}
		d, err := imgfile.Open(filepath.Join(dir, "0"))
		if err != nil {
			rt.Fatal(err)
		}
		m, err := d.Memory(id)
		if err != nil {
			rt.Fatal(err)
		}
		got := make([]content, pages)
		for i := range got {
			got[i].set = -1
		}
		last := page.Addr(0)
		for _, r := range m.Runs {
			if r.Start < last {
				rt.Fatalf("run %v begins before %v", r.Range, last)
			}
			last = r.End
			for a := r.Start; a < r.End; a += page.Size {
				i := int(a-base) >> page.Shift
				got[i] = content{r.File, byteAt(rt, m.Files[r.File].Path, r.Offset+int64(a-r.Start)), r.Lazy}
			}
		}
		for i := range want {
			if want[i].set == -1 {
				want[i] = content{set: -1}
			}
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(content{})); diff != "" {
			rt.Errorf("pages (-want +got):\n%s", diff)
		}
	})
}

// writeSet writes one set of a chain.
func writeSet(t *rapid.T, dir string, id imgfile.MemoryID, set, sets int, base page.Addr, pages []content) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := imgfile.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if set+1 < sets {
		if err := d.LinkParent("../" + strconv.Itoa(set+1)); err != nil {
			t.Fatal(err)
		}
	}
	w, err := d.CreateMemory(id, 5)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range pages {
		at := base + page.Addr(i)<<page.Shift
		flags := imgfile.Flags(0)
		if p.lazy {
			flags = imgfile.Lazy
		}
		switch {
		case p.set == -1:
		case set < p.set:
			err = w.Add(imgfile.Entry{Range: page.RangeOf(at, page.Size), Flags: flags | imgfile.Parent})
		case set == p.set:
			err = w.WriteBytes(at, flags, bytes.Repeat([]byte{p.fill}, page.Size))
		default: // older content, which is not to be seen
			err = w.WriteBytes(at, flags, make([]byte, page.Size))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// byteAt is one byte of a file.
func byteAt(t *rapid.T, path string, off int64) byte {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	return b[0]
}

// entry is an entry of n pages.
func entry(at page.Addr, n uint64, flags imgfile.Flags) imgfile.Entry {
	return imgfile.Entry{Range: page.RangeOf(at, n<<page.Shift), Flags: flags}
}

func TestMemoryThatCannotBeResolved(t *testing.T) {
	const at = page.Addr(0x10000)
	for _, tt := range []struct {
		name string
		sets [][]imgfile.Entry // the newest first
		loop bool              // the last builds on the first
	}{
		{"no parent", [][]imgfile.Entry{{entry(at, 4, imgfile.Parent)}}, false},
		{"begins late in the parent", [][]imgfile.Entry{{entry(at, 4, imgfile.Parent)}, {entry(at+page.Size, 3, imgfile.Lazy)}}, false},
		{"ends early in the parent", [][]imgfile.Entry{{entry(at, 4, imgfile.Parent)}, {entry(at, 3, imgfile.Lazy)}}, false},
		{"hole in the parent", [][]imgfile.Entry{
			{entry(at, 4, imgfile.Parent)},
			{entry(at, 1, imgfile.Lazy), entry(at+2*page.Size, 2, imgfile.Lazy)},
		}, false},
		{"empty parent", [][]imgfile.Entry{{entry(at, 4, imgfile.Parent)}, {}}, false},
		{"loop", [][]imgfile.Entry{{entry(at, 4, imgfile.Parent)}, {entry(at, 4, imgfile.Parent)}}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for i, entries := range tt.sets {
				path := filepath.Join(dir, strconv.Itoa(i))
				if err := os.Mkdir(path, 0o700); err != nil {
					t.Fatal(err)
				}
				if i+1 < len(tt.sets) {
					must(t, os.Symlink("../"+strconv.Itoa(i+1), filepath.Join(path, imgfile.ParentLink)))
				} else if tt.loop {
					must(t, os.Symlink("../0", filepath.Join(path, imgfile.ParentLink)))
				}
				b := written(t, &imgfile.Pagemap{PagesID: 1, Entries: entries})
				must(t, os.WriteFile(filepath.Join(path, imgfile.OfTask(1).File()), b, 0o600))
			}
			d, err := imgfile.Open(filepath.Join(dir, "0"))
			must(t, err)
			if _, err := d.Memory(imgfile.OfTask(1)); !errors.Is(err, imgfile.ErrDamaged) {
				t.Errorf("error %v, want ErrDamaged", err)
			}
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestMemoryThatIsNotThere(t *testing.T) {
	d, _ := dumped(t)
	if _, err := d.Memory(imgfile.OfTask(1)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v, want fs.ErrNotExist", err)
	}
	if _, err := imgfile.Open(filepath.Join("testdata", "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v, want fs.ErrNotExist", err)
	}
	must(t, os.Symlink("nowhere", filepath.Join(t.TempDir(), "parent")))
}

func TestDanglingParentIsAnError(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Symlink("nowhere", filepath.Join(dir, imgfile.ParentLink)))
	d, err := imgfile.Open(dir)
	must(t, err)
	if p, err := d.Parent(); err == nil {
		t.Errorf("no error, and set %v", p)
	}
}

func TestMemoryWriterRefuses(t *testing.T) {
	d, err := imgfile.Open(t.TempDir())
	must(t, err)
	w, err := d.CreateMemory(imgfile.OfTask(1), 1)
	must(t, err)
	defer w.Close()
	must(t, w.WriteBytes(0x10000, 0, make([]byte, page.Size)))
	for name, e := range map[string]imgfile.Entry{
		"below the last": entry(0x8000, 1, imgfile.Lazy),
		"unaligned":      {Range: page.Range{Start: 0x20001, End: 0x21001}, Flags: imgfile.Lazy},
		"empty":          entry(0x20000, 0, imgfile.Lazy),
		"too high":       entry(page.ImageShared, 1, imgfile.Lazy),
	} {
		if err := w.Add(e); err == nil {
			t.Errorf("%s: %v was accepted", name, e)
		}
	}
	if err := w.Write(entry(0x20000, 2, imgfile.Present), bytes.NewReader(make([]byte, page.Size))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a page too few: error %v, want io.ErrUnexpectedEOF", err)
	}
}
