package pageserver

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
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

// take has a server receive a dump of some tasks into dir, each with one page of a seed, up to
// its commit.
func take(t *testing.T, dir string, seed uint64, tasks ...int) *Files {
	t.Helper()
	return takeOn(t, dir, "", seed, tasks...)
}

// takeOn is take of a dump that leaves the page behind that one to the set prev, if there is one.
func takeOn(t *testing.T, dir, prev string, seed uint64, tasks ...int) *Files {
	t.Helper()
	f, err := NewFiles(dir, prev)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Abort)
	for _, pid := range tasks {
		if err := f.Begin(t.Context(), imgfile.OfTask(pid)); err != nil {
			t.Fatal(err)
		}
		e := imgfile.Entry{Range: page.RangeOf(0x10000, page.Size), Flags: imgfile.Present}
		if err := f.Add(t.Context(), e, bytes.NewReader(content(seed, e.Start, 1))); err != nil {
			t.Fatal(err)
		}
		if prev == "" {
			continue
		}
		e = imgfile.Entry{Range: page.RangeOf(0x11000, page.Size), Flags: imgfile.Parent}
		if err := f.Add(t.Context(), e, nil); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func commit(t *testing.T, f *Files) {
	t.Helper()
	if err := f.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// expectDumps compares the tasks of the set in dir, and the seeds of their dumps, and sees that
// there are no pages of others.
func expectDumps(t *testing.T, dir string, want map[int]uint64) {
	t.Helper()
	d, err := imgfile.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	ids, err := d.Memories()
	if err != nil {
		t.Fatal(err)
	}
	s := setIn(t, dir)
	defer s.Close()
	for _, id := range ids {
		seed, ok := want[int(id.ID)]
		if !ok {
			t.Errorf("%s is there", id.File())
			continue
		}
		expect(t, s, id, 0x10000, content(seed, 0x10000, 1))
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(ids) != len(want) || len(names) != 2*len(want) {
		t.Errorf("%d pagemaps, want %d, and as many pages files: %v, %v", len(ids), len(want), names, err)
	}
}

// A directory may have dumps of several processes, one after another or at once, and what it had
// before stays.
func TestDumpsIntoOneDirectory(t *testing.T) {
	for name, both := range map[string]func(dir string){
		"one after the other": func(dir string) {
			commit(t, take(t, dir, 1, 100, 101))
			commit(t, take(t, dir, 2, 200, 201))
		},
		"at once": func(dir string) {
			a, b := take(t, dir, 1, 100, 101), take(t, dir, 2, 200, 201)
			commit(t, a)
			commit(t, b)
		},
		"at once, the later is complete first": func(dir string) {
			a, b := take(t, dir, 1, 100, 101), take(t, dir, 2, 200, 201)
			commit(t, b)
			commit(t, a)
		},
		"one that failed between them": func(dir string) {
			a := take(t, dir, 1, 100, 101)
			take(t, dir, 9, 300, 301).Abort()
			b := take(t, dir, 2, 200, 201)
			commit(t, b)
			commit(t, a)
		},
		"and one again": func(dir string) {
			commit(t, take(t, dir, 9, 100, 101))
			commit(t, take(t, dir, 2, 200, 201))
			commit(t, take(t, dir, 1, 100, 101))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			both(dir)
			expectDumps(t, dir, map[int]uint64{100: 1, 101: 1, 200: 2, 201: 2})
		})
	}
}

// Dumps that come at once may build on one set. One that cannot, as another has come that builds
// on another set, takes nothing away.
func TestDumpsBuildOnOneSet(t *testing.T) {
	top := t.TempDir()
	below, dir := filepath.Join(top, "below"), filepath.Join(top, "set")
	for _, path := range []string{below, dir} {
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	d, err := imgfile.Open(below)
	if err != nil {
		t.Fatal(err)
	}
	for pid := 1; pid <= 4; pid++ {
		w, err := d.CreateMemory(imgfile.OfTask(pid), uint32(pid))
		if err == nil {
			err = w.WriteBytes(0x10000, imgfile.Present, content(7, 0x10000, 2))
		}
		if err == nil {
			err = w.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	commit(t, take(t, dir, 1, 2, 3))
	failed, first, second := takeOn(t, dir, "../below", 9, 4), takeOn(t, dir, "../below", 2, 1), takeOn(t, dir, "../below", 2, 2)
	other := takeOn(t, dir, below, 9, 3)
	inTheWay := filepath.Join(dir, failed.names[0])
	if err := errors.Join(os.Remove(inTheWay), os.Mkdir(inTheWay, 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := failed.end(); err != nil {
		t.Fatal(err)
	}
	if err := failed.place(); err == nil {
		t.Fatal("no error")
	}
	commit(t, first)
	if err := failed.retract(); err != nil {
		t.Fatal(err)
	}
	failed.Abort()
	if err := os.RemoveAll(inTheWay); err != nil {
		t.Fatal(err)
	}
	if there, err := os.Readlink(filepath.Join(dir, imgfile.ParentLink)); err != nil || there != "../below" {
		t.Errorf("the link that the first dump needs is to %q, %v", there, err)
	}
	commit(t, second)
	if err := other.Commit(t.Context()); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a dump that builds on another set: %v", err)
	}
	other.Abort()
	s := setIn(t, dir)
	defer s.Close()
	for pid := 1; pid <= 2; pid++ {
		expect(t, s, imgfile.OfTask(pid), 0x10000, append(content(2, 0x10000, 1), content(7, 0x11000, 1)...))
	}
	expect(t, s, imgfile.OfTask(3), 0x10000, content(1, 0x10000, 1))
}

// The pages of a dump that is replaced go with it, also where the one that replaces it is killed
// when it is in its place, or fails. What has their numbers then is another's.
func TestReplacedPagesGo(t *testing.T) {
	dir := t.TempDir()
	commit(t, take(t, dir, 1, 1, 2, 3))
	killed := take(t, dir, 2, 1, 2, 3)
	if err := errors.Join(killed.end(), killed.place()); err != nil {
		t.Fatal(err)
	}
	failed := take(t, dir, 3, 1, 2, 3) // has the numbers of the first dump
	if !slices.Contains(failed.names, imgfile.PagesName(firstPagesID)) {
		t.Fatal(failed.names)
	}
	killed.lock.Close()
	commit(t, take(t, dir, 4, 4))
	if _, err := os.Stat(filepath.Join(dir, failed.names[0])); err != nil {
		t.Errorf("a number that was reserved: %v", err)
	}
	inTheWay := filepath.Join(dir, failed.names[2])
	if err := errors.Join(os.Remove(inTheWay), os.Mkdir(inTheWay, 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := failed.Commit(t.Context()); err == nil {
		t.Fatal("no error")
	}
	failed.Abort()
	if err := os.RemoveAll(inTheWay); err != nil {
		t.Fatal(err)
	}
	expectDumps(t, dir, map[int]uint64{4: 4})
}

// Where the pages of a dump are gone, another server has their number by now.
func TestReplacedNumberStaysReserved(t *testing.T) {
	dir := t.TempDir()
	first := take(t, dir, 1, 1)
	commit(t, first)
	if err := os.Remove(filepath.Join(dir, first.names[0])); err != nil {
		t.Fatal(err)
	}
	other := take(t, dir, 2, 2)
	if other.names[0] != first.names[0] {
		t.Fatalf("%s, want the number of %s", other.names[0], first.names[0])
	}
	commit(t, take(t, dir, 3, 1))
	if _, err := os.Stat(filepath.Join(dir, other.names[0])); err != nil {
		t.Error(err)
	}
	commit(t, other)
	expectDumps(t, dir, map[int]uint64{1: 3, 2: 2})
}

// Servers that start at once leave each other's stages.
func TestStartAtOnce(t *testing.T) {
	dir := t.TempDir()
	for range 100 {
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				f, err := NewFiles(dir, "")
				if err != nil {
					t.Error(err)
					return
				}
				defer f.Abort()
				if err := stillAt(f.lock, f.stage.Path()); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
		t.Errorf("%v is left, %v", names, err)
	}
}

// Pages files that CRIU's own dump has made in the directory are no page server's to remove.
func TestPagesOfALocalDumpStay(t *testing.T) {
	dir := t.TempDir()
	d, err := imgfile.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	w, err := d.CreateMemory(imgfile.OfTask(1), 1)
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	commit(t, take(t, dir, 1, 1))
	if _, err := os.Stat(d.File(imgfile.PagesName(1))); err != nil {
		t.Error(err)
	}
}

// Pages that CRIU's own server has made under a number that one of ours had reserved stay.
func TestReleasedNumberIsEmpty(t *testing.T) {
	dir := t.TempDir()
	for name, end := range map[string]func(f *Files){
		"given up": func(f *Files) { f.Abort() },
		"killed": func(f *Files) {
			f.lock.Close()
			take(t, dir, 2, 2).Abort()
		},
	} {
		f := take(t, dir, 1, 1, 2)
		theirs := filepath.Join(dir, f.names[0])
		if err := os.WriteFile(theirs, content(9, 0x10000, 1), 0o600); err != nil {
			t.Fatal(err)
		}
		end(f)
		names, err := os.ReadDir(dir)
		if err != nil || len(names) != 1 || filepath.Join(dir, names[0].Name()) != theirs {
			t.Errorf("%s: %v, %v; want %s", name, names, err, theirs)
		}
		os.Remove(theirs)
	}
}

// Whoever is killed while a dump takes the place of another one of the same tasks leaves no
// pagemap of that. Where it fails, nothing of it is left. What is not replaced stays.
func TestReplacedSetIsOfOneTime(t *testing.T) {
	dir := t.TempDir()
	commit(t, take(t, dir, 1, 1, 2, 3, 4))
	// spoil has the second task's pages not come to their place.
	spoil := func(f *Files) {
		inTheWay := filepath.Join(dir, f.names[2])
		if err := errors.Join(os.Remove(inTheWay), os.Mkdir(inTheWay, 0o700)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(inTheWay) })
	}
	killed := take(t, dir, 2, 1, 2, 3)
	spoil(killed)
	if err := errors.Join(killed.end(), killed.place()); err == nil {
		t.Fatal("no error")
	}
	killed.lock.Close()
	d, err := imgfile.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	has := func(want ...imgfile.MemoryID) {
		t.Helper()
		if got, err := d.Memories(); err != nil || !slices.Equal(got, want) {
			t.Errorf("pagemaps of %v are there, want %v; %v", got, want, err)
		}
	}
	has(imgfile.OfTask(1), imgfile.OfTask(4))
	failed := take(t, dir, 3, 1, 2, 3)
	spoil(failed)
	pages := failed.names[0]
	if err := failed.Commit(t.Context()); err == nil {
		t.Fatal("no error")
	}
	failed.Abort()
	has(imgfile.OfTask(4))
	if _, err := os.Stat(d.File(pages)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("pages of a dump that failed: %v", err)
	}
	// A pagemap whose pages are gone comes to no others.
	pm, err := d.Pagemap(imgfile.OfTask(4))
	if err == nil {
		err = os.Remove(d.File(imgfile.PagesName(pm.PagesID)))
	}
	if err != nil {
		t.Fatal(err)
	}
	again := take(t, dir, 4, 1, 2, 3, 5)
	if !slices.Contains(again.names, imgfile.PagesName(pm.PagesID)) {
		t.Fatal(again.names)
	}
	commit(t, again)
	has(imgfile.OfTask(1), imgfile.OfTask(2), imgfile.OfTask(3), imgfile.OfTask(5))
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
