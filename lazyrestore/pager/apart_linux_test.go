package pager

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// Shared memory that a mapping has grown by has its content also where it is shown elsewhere, too, and was not there yet.
func TestSharedMemoryGrowsOverWhatIsShownElsewhere(t *testing.T) {
	apart := func(t *testing.T) (s *served, grown, moved uint64) {
		t.Helper()
		s = serveChild(t, setting{child: uffdtest.Options{Pages: 64, Kind: uffdtest.Shmem}, pager: Options{Background: None}})
		moved = s.Mremap(s.Addr(32), 32*page.Size, 32*page.Size, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, s.Start+1<<30).Wait(t)
		return s, s.grow(t, s.Thread), moved
	}
	t.Run("touched where it has grown", func(t *testing.T) {
		s, grown, moved := apart(t)
		s.checkAt(t, s.Thread, grown+40*page.Size, 40*page.Size, 24*page.Size)
		s.checkAt(t, s.Thread, moved, 32*page.Size, 32*page.Size)
		s.checkAt(t, s.Thread, grown, 0, 64*page.Size)
		if err := s.wait(t); err != nil {
			t.Error(err)
		}
	})
	t.Run("touched elsewhere", func(t *testing.T) {
		s, grown, moved := apart(t)
		s.checkAt(t, s.Thread, moved, 32*page.Size, 16*page.Size)
		s.checkAt(t, s.Thread, grown+32*page.Size, 32*page.Size, 32*page.Size)
		s.checkAt(t, s.Thread, moved, 32*page.Size, 32*page.Size)
	})
	t.Run("removed where it has grown", func(t *testing.T) {
		s, grown, moved := apart(t)
		s.checkAt(t, s.Thread, moved, 32*page.Size, 8*page.Size) // it is there, and no fault tells of the growth
		s.Madvise(grown+36*page.Size, 8*page.Size, unix.MADV_REMOVE).Wait(t)
		zero(t, s.Thread, moved+4*page.Size, 8*page.Size)
		zero(t, s.Thread, grown+36*page.Size, 8*page.Size)
		s.checkAt(t, s.Thread, grown+44*page.Size, 44*page.Size, 20*page.Size)
		s.checkAt(t, s.Thread, moved, 32*page.Size, 4*page.Size)
	})
	t.Run("by a forked child", func(t *testing.T) {
		s := serveChild(t, setting{child: uffdtest.Options{Pages: 64, Kind: uffdtest.Shmem}, pager: Options{Background: None}})
		child, pid := s.Fork(t)
		pid.Wait(t)
		child.Mremap(s.Addr(32), 32*page.Size, 32*page.Size, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, s.Start+1<<30).Wait(t)
		grown := s.grow(t, child)
		s.checkAt(t, child, grown+32*page.Size, 32*page.Size, 32*page.Size)
		s.check(t, s.Thread)
		child.Exit(0)
	})
	t.Run("what begins so", func(t *testing.T) {
		object := page.Object{Range: page.RangeOf(page.ImageShared, 64*page.Size)}
		part := func(at, n page.Addr, off page.Addr) page.Mapping {
			return page.Mapping{Range: page.RangeOf(testBase+at*page.Size, uint64(n)*page.Size), Image: page.ImageShared + off*page.Size, PageSize: page.Size, Shared: true, Object: object}
		}
		for name, c := range map[string]struct {
			maps []page.Mapping
			want bool
		}{
			"one":                  {[]page.Mapping{part(0, 32, 0)}, false},
			"with a gap":           {[]page.Mapping{part(0, 16, 0), part(32, 16, 32)}, false},
			"in another order":     {[]page.Mapping{part(32, 16, 0), part(0, 16, 32)}, true},
			"twice the same":       {[]page.Mapping{part(0, 16, 0), part(32, 16, 0)}, true},
			"a gap that is closed": {[]page.Mapping{part(0, 16, 0), part(16, 16, 32)}, true},
		} {
			l, err := newLayout(c.maps)
			if err != nil {
				t.Fatal(err)
			}
			if l.apart != c.want {
				t.Errorf("%s: apart is %v", name, l.apart)
			}
		}
	})
}

// A forked child, whose pid is not known, is seen by the thread that waits.
func TestSharedMemoryGrowsInAChild(t *testing.T) {
	for name, c := range map[string]struct {
		grow func(t *testing.T, s *served, child *uffdtest.Thread) uint64
		off  int // of the first page that is still there
	}{
		"at its place": {func(t *testing.T, s *served, child *uffdtest.Thread) uint64 { return s.grow(t, child) }, 0},
		"and moves": {func(t *testing.T, s *served, child *uffdtest.Thread) uint64 {
			return child.Mremap(s.grow(t, child), 64*page.Size, 64*page.Size, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, s.Start+1<<30).Wait(t)
		}, 0},
		"and the rest goes": {func(t *testing.T, s *served, child *uffdtest.Thread) uint64 {
			at := s.grow(t, child)
			child.Munmap(at, 40*page.Size).Wait(t)
			return at
		}, 40},
		"when its parent has ended": {func(t *testing.T, s *served, child *uffdtest.Thread) uint64 {
			s.Kill()
			s.WaitExit(t)
			return s.grow(t, child)
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := serveChild(t, setting{child: uffdtest.Options{Pages: 64, Kind: uffdtest.Shmem}, pager: Options{Background: None}})
			child, pid := s.Fork(t)
			pid.Wait(t)
			child.Munmap(s.Addr(32), 32*page.Size).Wait(t)
			at := c.grow(t, s, child)
			s.checkAt(t, child, at+50*page.Size, 50*page.Size, 14*page.Size)
			s.checkAt(t, child, at+uint64(c.off)*page.Size, c.off*page.Size, (64-c.off)*page.Size)
			child.Exit(0)
			s.Kill()
			if err := s.wait(t); err != nil {
				t.Error(err)
			}
		})
	}
}

// Where it cannot be seen what has grown, as of a forked child whose threads are not known, the page is lost to it, and to nobody else.
func TestSharedMemoryGrowsUnseen(t *testing.T) {
	uffdtest.Need(t, "POISON")
	s := serveChild(t, setting{child: uffdtest.Options{Pages: 64, Kind: uffdtest.Shmem}, nameless: true, pager: Options{Background: None}})
	child, pid := s.Fork(t)
	pid.Wait(t)
	child.Munmap(s.Addr(32), 32*page.Size).Wait(t)
	at := s.grow(t, child)
	if got, err := child.Load(at + 40*page.Size).Result(); !uffdtest.Gone(err) {
		t.Errorf("the child reads %d, %v, want its end by SIGBUS", got, err)
	}
	s.check(t, s.Thread)
	s.Kill()
	var lost *LostError
	if err := s.wait(t); !errors.As(err, &lost) {
		t.Errorf("Serve = %v, want a LostError", err)
	}
}

// Nor is it zero where it has moved since.
func TestGrownSharedMemoryMoves(t *testing.T) {
	uffdtest.Need(t, "POISON")
	s := serveChild(t, setting{child: uffdtest.Options{Pages: 64, Kind: uffdtest.Shmem}, nameless: true, pager: Options{Background: None}})
	child, pid := s.Fork(t)
	pid.Wait(t)
	child.Munmap(s.Addr(32), 32*page.Size).Wait(t)
	s.grow(t, child)
	at := child.Mremap(s.Addr(0), 64*page.Size, 64*page.Size, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, s.Start+1<<30).Wait(t)
	if got, err := child.Load(at + 40*page.Size).Result(); !uffdtest.Gone(err) {
		t.Errorf("the child reads %d, %v, want its end by SIGBUS", got, err)
	}
	s.check(t, s.Thread)
}

// What is done to shared memory that is missing where no fault is told of it, as SUPPORT.md says.
func TestSharedMemoryOpenedAnew(t *testing.T) {
	uffdtest.Need(t, "root")
	s := serveChild(t, setting{child: uffdtest.Options{Pages: 16, Kind: uffdtest.Shmem}, pager: Options{Background: None}})
	file, err := os.OpenFile(fmt.Sprintf("/proc/%d/map_files/%x-%x", s.Pid, s.Start, s.Start+s.Length), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	at := func(i int) int64 { return int64(i) * page.Size }
	if _, err := file.WriteAt([]byte{7}, at(2)+1); err != nil {
		t.Fatal(err)
	}
	read := make([]byte, page.Size)
	if _, err := file.ReadAt(read, at(4)); err != nil {
		t.Fatal(err)
	}
	mapped, err := unix.Mmap(int(file.Fd()), at(6), page.Size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(mapped) }()
	read[1] |= mapped[1]
	if err := unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at(8), page.Size); err != nil {
		t.Fatal(err)
	}
	if read[1] != 0 {
		t.Error("what is missing is not zero there")
	}
	for off, want := range map[int64]byte{at(2): 0, at(2) + 1: 7, at(4): s.want[at(4)], at(6): 0, at(8): s.want[at(8)]} {
		if got := s.Load(s.Start + uint64(off)).Wait(t); got != uint64(want) {
			t.Errorf("%d bytes on it is %d, want %d", off, got, want)
		}
	}
}
