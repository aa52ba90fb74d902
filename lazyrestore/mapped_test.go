package lazyrestore_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

var mappedScenes = []survival{
	// locked as its pages come
	{scene: "locked", changed: []string{"mapping "}},
	{scene: "locked-all", changed: []string{"mapping "}},
	{scene: "policies"},
	{scene: "wiped"},
	{scene: "removed-mapping", changed: []string{"mapping "}},
	{scene: "seals"},
	{scene: "no-exec"},
}

func TestMappedSurvives(t *testing.T) { survives(t, mappedScenes) }

// Of so many changed pages that half are written by the one who restores, some
// lie where the process may not write.
func TestManyChangedPages(t *testing.T) {
	t.Parallel()
	s := start(t, "private-file", "2048")
	s.cycle(plainest, filling)
	s.cycle(plainest, filling)
	s.release()
	s.well()
}

// Where a mapped file has lost its end there is no room for the pages that were
// changed there, neither for those that the process writes nor for the others.
func TestChangedPagesWithoutFile(t *testing.T) {
	t.Parallel()
	s := start(t, "private-file", "2048")
	s.checkpoint(plainest)
	path := filepath.Join(s.dir, "private")
	whole := must(os.ReadFile(path))(t)
	for _, pages := range []int64{1, 500, 1500} {
		if err := os.Truncate(path, pages*4096); err != nil {
			t.Fatal(err)
		}
		err := s.tryRestore(lazyrestore.RestoreOptions{ChangedFiles: lazyrestore.ChangedWarn})
		if err == nil || !contains(err.Error(), "eager pages") {
			t.Fatalf("with %d of its pages: %v", pages, err)
		}
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	s.restore(lazyrestore.RestoreOptions{ChangedFiles: lazyrestore.ChangedWarn})
	s.release()
	s.well()
}

// Pages that the process has zeroed in a private mapping of a file may be the
// kernel's page of zeros, which is no page of the file.
func TestMergedZerosSurvive(t *testing.T) {
	needAll(t)
	uffdtest.NeedFunc(t, "ksm", func() error { return unix.Access(ksmDir+"use_zero_pages", unix.W_OK) })
	for name, value := range map[string]string{"use_zero_pages": "1", "pages_to_scan": "2000", "run": "1"} {
		before := firstLine(t, ksmDir+name)
		t.Cleanup(func() {
			if err := os.WriteFile(ksmDir+name, []byte(before), 0); err != nil {
				t.Error(err)
			}
		})
		if err := os.WriteFile(ksmDir+name, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	s := start(t, "merged-zeros")
	zeroed := s.says(`mapped ([0-9a-f]+)-([0-9a-f]+)`)
	r := page.Range{Start: page.Addr(must(strconv.ParseUint(zeroed[1], 16, 64))(t)), End: page.Addr(must(strconv.ParseUint(zeroed[2], 16, 64))(t))}
	s.await("have its zeros merged", func() bool { return zeroPages(t, s.pid, r) == r.Pages() })
	s.cycle(plainest, filling)
	s.release()
	s.well()
}

const ksmDir = "/sys/kernel/mm/ksm/"

// zeroPages counts the pages of r that are the kernel's page of zeros.
func zeroPages(t *testing.T, pid int, r page.Range) (n uint64) {
	t.Helper()
	scan := must(proc.NewPageScanner(pid))(t)
	defer scan.Close()
	err := scan.Scan(r, func(run proc.PageRun) error {
		if run.Categories&proc.PageZero != 0 {
			n += run.Pages()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// The kernel may drop such memory at any time: it comes back as memory of that
// kind, without content.
func TestDroppableMemory(t *testing.T) {
	t.Parallel()
	s := start(t, "droppable")
	before := lookAt(t, s.pid)
	s.cycle(plainest, filling)
	compareLooks(t, before, lookAt(t, s.pid), nil)
	s.release()
	s.well()
}

// What is mapped after the restore is locked as it would have been.
func TestLockedFutureSurvives(t *testing.T) {
	for name, args := range map[string][]string{"all": nil, "on fault": {"on-fault"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t, "locked-future", args...)
			s.cycle(plainest, filling)
			s.cycle(plainest, filling)
			s.release()
			s.well()
		})
	}
}

func TestHugePagesSurvive(t *testing.T) {
	uffdtest.Need(t, "hugetlb")
	for name, opts := range map[string]lazyrestore.RestoreOptions{
		"filled": {}, "on demand": {Background: lazyrestore.BackgroundNone}, "eager": {Eager: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, "hugetlb")
			s.cycle(plainest, opts)
			s.cycle(plainest, opts)
			s.release()
			s.well()
		})
	}
}

// memoryFiles starts the scene in a directory of its own of /dev/shm.
func memoryFiles(t *testing.T) (s *subject, dir string) {
	t.Helper()
	where := t.TempDir()
	s = launch(t, startWith{scene: "memory-files", args: []string{"/dev/shm", where}, cwd: where})
	s.ready(1)
	dir = "/dev/shm/subject-" + strconv.Itoa(s.pid)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return s, dir
}

// Files of memory file systems are part of the image, also with a name.
func TestMemoryFiles(t *testing.T) {
	names := []string{"shared", "private", "plain"}
	t.Run("there", func(t *testing.T) {
		t.Parallel()
		s, _ := memoryFiles(t)
		s.cycle(plainest, filling)
		s.release()
		s.well()
	})
	t.Run("gone", func(t *testing.T) {
		t.Parallel()
		s, dir := memoryFiles(t)
		for range 2 {
			s.checkpoint(plainest)
			for _, name := range names {
				if err := os.Remove(filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			}
			s.restore(filling)
		}
		s.release()
		s.well()
	})
	t.Run("changed", func(t *testing.T) {
		t.Parallel()
		s, dir := memoryFiles(t)
		s.checkpoint(plainest)
		info := must(os.Stat(filepath.Join(dir, "shared")))(t)
		f := must(os.OpenFile(filepath.Join(dir, "shared"), os.O_RDWR, 0))(t)
		if _, err := f.WriteAt([]byte("x"), 1000); err != nil {
			t.Fatal(err)
		}
		f.Close()
		// As a write through a mapping would, which leaves the time as it is.
		if err := os.Chtimes(f.Name(), info.ModTime(), info.ModTime()); err != nil {
			t.Fatal(err)
		}
		err := s.tryRestore(filling)
		var refused *lazyrestore.RefusedError
		if !errors.As(err, &refused) || !contains(err.Error(), f.Name()+": its content was changed") {
			t.Errorf("%v, want a refusal that names the file", err)
		}
		if err := os.Remove(f.Name()); err != nil {
			t.Fatal(err)
		}
		s.restore(filling)
		s.release()
		s.well()
	})
	t.Run("failed", func(t *testing.T) {
		t.Parallel()
		s, dir := memoryFiles(t)
		s.checkpoint(plainest)
		if err := errors.Join(os.Remove(filepath.Join(dir, "private")), os.Truncate(filepath.Join(dir, "plain"), 1)); err != nil {
			t.Fatal(err)
		}
		if err := s.tryRestore(filling); err == nil {
			t.Error("restored with a file that is shorter")
		}
		if _, err := os.Stat(filepath.Join(dir, "private")); err == nil {
			t.Error("a restore that failed has left a file")
		}
	})
	t.Run("of a damaged image", func(t *testing.T) {
		t.Parallel()
		s, dir := memoryFiles(t)
		s.checkpoint(plainest)
		eager := filepath.Join(s.image, image.EagerObject)
		flipped := must(os.ReadFile(eager))(t)
		for i := range flipped {
			flipped[i] ^= 1
		}
		damage := map[string]func() error{
			"with bits flipped": func() error { return os.WriteFile(eager, flipped, 0) },
			"cut off":           func() error { return os.Truncate(eager, 1) },
		}
		damaged := func(state string) {
			for what, damage := range damage {
				if err := damage(); err != nil {
					t.Fatal(err)
				}
				if err := s.tryRestore(filling); !errors.Is(err, image.ErrDamaged) {
					t.Errorf("files %s, content %s: %v, want an error that says damaged", state, what, err)
				}
			}
		}
		damaged("there")
		for _, name := range names {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		damaged("gone")
	})
}

// A program of so many mappings that each splits into two or three does not
// fit, and of one that hardly has room for its own.
func TestManyMappings(t *testing.T) {
	t.Parallel()
	limit := must(strconv.Atoi(firstLine(t, "/proc/sys/vm/max_map_count")))(t)
	for _, n := range []int{20000, limit - 100} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			s := start(t, "many-mappings", strconv.Itoa(n))
			s.cycle(plainest, filling)
			s.cycle(plainest, filling)
			s.release()
			s.well()
		})
	}
	t.Run("too many", func(t *testing.T) {
		s := start(t, "many-mappings", strconv.Itoa(limit-31))
		if err := s.refused(false); !contains(err.Error(), "vm.max_map_count") && !contains(err.Error(), "limit is") {
			t.Error(err)
		}
		s.release()
		s.well()
	})
}

func firstLine(t *testing.T, path string) string {
	t.Helper()
	text := must(os.ReadFile(path))(t)
	for i, c := range text {
		if c == '\n' {
			return string(text[:i])
		}
	}
	return string(text)
}
