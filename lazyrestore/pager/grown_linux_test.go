package pager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// growable serves 64 pages of shared memory, of which the process has unmapped the upper half, and a
// forked child that has all of them.
func growable(t *testing.T) (s *served, child *uffdtest.Thread) {
	t.Helper()
	return growableOf(t, setting{})
}

func growableOf(t *testing.T, set setting) (s *served, child *uffdtest.Thread) {
	t.Helper()
	set.child = uffdtest.Options{Pages: 64, Kind: uffdtest.Shmem}
	set.pager.Background = None
	s = serveChild(t, set)
	child, pid := s.Fork(t)
	pid.Wait(t)
	s.Munmap(s.Addr(32), 32*page.Size).Wait(t)
	return s, child
}

// grow has th show all of it again, and returns where.
func (s *served) grow(t *testing.T, th *uffdtest.Thread) uint64 {
	t.Helper()
	return th.Mremap(s.Addr(0), 32*page.Size, 64*page.Size, unix.MREMAP_MAYMOVE, 0).Wait(t)
}

// Shared memory that a mapping has grown by has its content, and keeps it for others.
func TestSharedMemoryGrows(t *testing.T) {
	t.Run("at its place", func(t *testing.T) {
		s, child := growable(t)
		defer child.Exit(0)
		at := s.grow(t, s.Thread)
		s.checkAt(t, s.Thread, at+40*page.Size, 40*page.Size, 3*page.Size)
		s.checkAt(t, s.Thread, at+63*page.Size, 63*page.Size, page.Size)
		s.check(t, child)
		s.checkAt(t, s.Thread, at, 0, 64*page.Size)
	})
	t.Run("elsewhere", func(t *testing.T) {
		s, child := growable(t)
		defer child.Exit(0)
		s.Mmap(s.Addr(40), page.Size, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED).Wait(t)
		at := s.grow(t, s.Thread)
		if at == s.Start {
			t.Fatal("it has not moved")
		}
		s.Store(at+50*page.Size, 7).Wait(t)
		if got := child.Load(s.Addr(50)).Wait(t); got != 7 {
			t.Errorf("what was stored is %d for the other process", got)
		}
		s.checkAt(t, s.Thread, at, 0, 50*page.Size)
		s.checkAt(t, child, s.Addr(51), 51*page.Size, 13*page.Size)
	})
	t.Run("nobody else has it", func(t *testing.T) {
		s, child := growable(t)
		child.Exit(0)
		at := s.grow(t, s.Thread)
		s.Load(at + 63*page.Size).Wait(t)
		s.checkAt(t, s.Thread, at, 0, 64*page.Size)
		if err := s.wait(t); err != nil { // all of it is there
			t.Error(err)
		}
	})
	t.Run("removed", func(t *testing.T) {
		s, child := growable(t)
		defer child.Exit(0)
		child.Madvise(s.Addr(36), 8*page.Size, unix.MADV_REMOVE).Wait(t)
		at := s.grow(t, s.Thread)
		s.Madvise(at+56*page.Size, 4*page.Size, unix.MADV_REMOVE).Wait(t)
		zero(t, s.Thread, at+56*page.Size, 4*page.Size)
		zero(t, s.Thread, at+36*page.Size, 8*page.Size)
		s.checkAt(t, s.Thread, at+32*page.Size, 32*page.Size, 4*page.Size)
		s.checkAt(t, s.Thread, at+44*page.Size, 44*page.Size, 12*page.Size)
		zero(t, child, s.Addr(36), 8*page.Size)
	})
}

// What an object itself has grown by is new, whatever the image has of the next one.
func TestSharedObjectGrows(t *testing.T) {
	uffdtest.Need(t, "root")
	grow := func(t *testing.T, pid int, s *served) uint64 {
		t.Helper()
		if err := os.Truncate(fmt.Sprintf("/proc/%d/map_files/%x-%x", pid, s.Start, s.Start+s.Length), 128*page.Size); err != nil {
			t.Fatal(err)
		}
		return s.Mremap(s.Start, 64*page.Size, 128*page.Size, unix.MREMAP_MAYMOVE, 0).Wait(t)
	}
	set := setting{child: uffdtest.Options{Pages: 64, Kind: uffdtest.Shmem}, pager: Options{Background: None}, above: true}
	t.Run("served", func(t *testing.T) {
		s := serveChild(t, set)
		at := grow(t, s.Pid, s)
		zero(t, s.Thread, at+64*page.Size, 64*page.Size)
		s.checkAt(t, s.Thread, at, 0, 64*page.Size)
	})
	t.Run("after a take-over", func(t *testing.T) {
		v := startVictim(t, set, false)
		at := grow(t, v.Pid, &v.served)
		v.killPager()
		v.resume(t)
		zero(t, v.Thread, at+64*page.Size, 64*page.Size)
		v.checkAt(t, v.Thread, at, 0, 64*page.Size)
	})
	t.Run("removed", func(t *testing.T) {
		object := func(start, image page.Addr) page.Mapping {
			return page.Mapping{Range: page.RangeOf(start, 8*page.Size), Image: image, PageSize: page.Size, Shared: true, Object: page.Object{Range: page.RangeOf(image, 8*page.Size)}}
		}
		a, b := object(testBase, page.ImageShared), object(testBase+1<<30, page.ImageShared+9*page.Size)
		l, err := newLayout([]page.Mapping{a, b})
		if err != nil {
			t.Fatal(err)
		}
		w := &world{}
		m := w.add(3, 0, l)
		w.remove(m, event{kind: eventRemove, from: page.RangeOf(a.Start+6*page.Size, 8*page.Size)})
		if want := page.SetOf(page.RangeOf(a.Image+6*page.Size, 2*page.Size)); !slices.Equal(slices.Collect(w.removed.All()), slices.Collect(want.All())) {
			t.Errorf("%v is taken for removed, want %v", slices.Collect(w.removed.All()), slices.Collect(want.All()))
		}
	})
}

// What is dropped of it has its content, as what it was grown from has, though all of that is there.
func TestSharedMemoryGrowsAndIsDropped(t *testing.T) {
	for name, zero := range map[string]func(int) bool{"all stored": nil, "zeros first": func(i int) bool { return i == 32 }} {
		t.Run(name, func(t *testing.T) {
			s, child := growableOf(t, setting{more: true, zero: zero})
			defer child.Exit(0)
			s.checkAt(t, s.Thread, s.Start, 0, 32*page.Size)
			at := s.grow(t, s.Thread)
			s.Madvise(at+32*page.Size, 32*page.Size, unix.MADV_DONTNEED).Wait(t)
			s.checkAt(t, s.Thread, at+32*page.Size, 32*page.Size, 32*page.Size)
			s.check(t, child)
		})
	}
}

// What it has grown by stays its own when the rest of the mapping goes, or moves.
func TestGrownSharedMemoryAlone(t *testing.T) {
	for name, part := range map[string]func(t *testing.T, s *served, at uint64){
		"unmapped":                   func(t *testing.T, s *served, at uint64) { s.Munmap(at, 32*page.Size).Wait(t) },
		"unmapped with a part of it": func(t *testing.T, s *served, at uint64) { s.Munmap(at, 36*page.Size).Wait(t) },
		"moved": func(t *testing.T, s *served, at uint64) {
			s.Mremap(at, 32*page.Size, 32*page.Size, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, at+1<<30).Wait(t)
		},
		"replaced": func(t *testing.T, s *served, at uint64) {
			s.Mmap(at, 32*page.Size, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED).Wait(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, child := growable(t)
			defer child.Exit(0)
			at := s.grow(t, s.Thread)
			part(t, s, at)
			s.checkAt(t, s.Thread, at+36*page.Size, 36*page.Size, 28*page.Size)
			s.check(t, child)
		})
	}
}

// So it is where it moves.
func TestGrownSharedMemoryMovesAlone(t *testing.T) {
	for name, from := range map[string]int{"all of it": 32, "a part of it": 40, "with more": 16} {
		t.Run(name, func(t *testing.T) {
			s, child := growable(t)
			defer child.Exit(0)
			at := s.grow(t, s.Thread)
			to := s.Mremap(at+uint64(from)*page.Size, 16*page.Size, 16*page.Size, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, at+1<<30).Wait(t)
			s.checkAt(t, s.Thread, to, from*page.Size, 16*page.Size)
			s.checkAt(t, s.Thread, at+56*page.Size, 56*page.Size, 8*page.Size)
			s.checkAt(t, s.Thread, at, 0, 16*page.Size)
			s.check(t, child)
		})
	}
}

// What no mapping shows is brought, too, before the process is let go of.
func TestHiddenSharedMemoryIsBrought(t *testing.T) {
	t.Run("to be shown again", func(t *testing.T) {
		s, child := growable(t)
		child.Exit(0)
		s.checkAt(t, s.Thread, s.Start, 0, 32*page.Size)
		if err := s.wait(t); err != nil {
			t.Fatal(err)
		}
		at := s.grow(t, s.Thread)
		s.checkAt(t, s.Thread, at, 0, 64*page.Size)
	})
	t.Run("but for what is removed", func(t *testing.T) {
		s, child := growable(t)
		child.Madvise(s.Addr(40), 8*page.Size, unix.MADV_REMOVE).Wait(t)
		child.Exit(0)
		s.checkAt(t, s.Thread, s.Start, 0, 32*page.Size)
		if err := s.wait(t); err != nil {
			t.Fatal(err)
		}
		at := s.grow(t, s.Thread)
		s.checkAt(t, s.Thread, at, 0, 40*page.Size)
		zero(t, s.Thread, at+40*page.Size, 8*page.Size)
		s.checkAt(t, s.Thread, at+48*page.Size, 48*page.Size, 16*page.Size)
	})
	t.Run("for two that share it", func(t *testing.T) {
		release := make(chan struct{})
		var r *remote
		s := serveChild(t, setting{
			child: uffdtest.Options{Pages: 64, Kind: uffdtest.Shmem},
			source: remoteOf(&r, func(ctx context.Context, _ image.Lane) error {
				select {
				case <-release:
				case <-ctx.Done():
				}
				return ctx.Err()
			}),
		})
		child, pid := s.Fork(t)
		pid.Wait(t)
		s.Munmap(s.Addr(32), 32*page.Size).Wait(t)
		child.Munmap(s.Addr(16), 48*page.Size).Wait(t)
		stored := s.Store(s.Addr(20), 7)
		close(release)
		stored.Wait(t)
		if err := s.wait(t); err != nil {
			t.Fatal(err)
		}
		at := child.Mremap(s.Addr(0), 16*page.Size, 64*page.Size, unix.MREMAP_MAYMOVE, 0).Wait(t)
		if got := child.Load(at + 20*page.Size).Wait(t); got != 7 {
			t.Errorf("what was stored is %d for the other process", got)
		}
		s.checkAt(t, child, at+21*page.Size, 21*page.Size, 43*page.Size)
		child.Exit(0)
	})
	t.Run("but for what a mapping has grown to meanwhile", func(t *testing.T) {
		began, release := make(chan struct{}, 64), make(chan struct{})
		log := &said{"mapped nowhere has been brought", make(chan struct{}, 1)}
		var r *remote
		s := serveChild(t, setting{
			child:  uffdtest.Options{Pages: 64, Kind: uffdtest.Shmem},
			writer: image.WriterOptions{Spec: chunk.Spec{Codec: chunk.LZ4}, ChunkSize: 8 * page.Size},
			pager:  Options{Background: None, Logger: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))},
			source: remoteOf(&r, func(ctx context.Context, lane image.Lane) error {
				if lane != image.Background {
					return nil
				}
				began <- struct{}{}
				select {
				case <-release:
				case <-ctx.Done():
				}
				return ctx.Err()
			}),
		})
		s.Munmap(s.Addr(32), 32*page.Size).Wait(t)
		s.checkAt(t, s.Thread, s.Start, 0, 32*page.Size)
		<-began
		at := s.grow(t, s.Thread)
		s.checkAt(t, s.Thread, at+33*page.Size, 33*page.Size, page.Size)
		close(release)
		<-log.once
		s.Munmap(at+32*page.Size, 32*page.Size).Wait(t)
		if err := s.wait(t); err != nil {
			t.Fatal(err)
		}
		at = s.Mremap(at, 32*page.Size, 64*page.Size, unix.MREMAP_MAYMOVE, 0).Wait(t)
		s.checkAt(t, s.Thread, at, 0, 64*page.Size)
	})
	t.Run("not where there is nothing of it any more", func(t *testing.T) {
		s, child := growable(t)
		child.Exit(0)
		s.Munmap(s.Start, 32*page.Size).Wait(t)
		if err := s.wait(t); err != nil {
			t.Fatal(err)
		}
	})
}

// Where that cannot be, as in a forked child that is alone, it is missing as long as the child lives.
func TestHiddenSharedMemoryOfAnOrphan(t *testing.T) {
	uffdtest.Need(t, "POISON")
	log := &said{"mapped nowhere cannot be brought", make(chan struct{}, 1)}
	s := serveChild(t, setting{
		child: uffdtest.Options{Pages: 64, Kind: uffdtest.Shmem}, nameless: true,
		pager: Options{Background: None, Logger: slog.New(slog.NewTextHandler(log, nil))},
	})
	child, pid := s.Fork(t)
	pid.Wait(t)
	child.Munmap(s.Addr(32), 32*page.Size).Wait(t)
	s.Kill()
	s.WaitExit(t)
	s.checkAt(t, child, s.Start, 0, 32*page.Size)
	<-log.once
	at := s.grow(t, child)
	if got, err := child.Load(at + 40*page.Size).Result(); !uffdtest.Gone(err) {
		t.Errorf("the child reads %d, %v, want its end by SIGBUS", got, err)
	}
	var lost *LostError
	if err := s.wait(t); !errors.As(err, &lost) {
		t.Errorf("Serve = %v, want a LostError", err)
	}
}

// What one process has given up others may miss still.
func TestHiddenSharedMemoryThatAnotherGaveUp(t *testing.T) {
	uffdtest.Need(t, "POISON")
	log := &said{`msg="let go"`, make(chan struct{}, 1)}
	s := serveChild(t, setting{
		child: uffdtest.Options{Pages: 64, Kind: uffdtest.Shmem}, nameless: true,
		pager: Options{Background: None, Logger: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))},
	})
	child, pid := s.Fork(t)
	pid.Wait(t)
	child.Munmap(s.Addr(32), 32*page.Size).Wait(t)
	s.Munmap(s.Start, 64*page.Size).Wait(t)
	<-log.once // of the parent: the child misses the lower half
	at := s.grow(t, child)
	if got, err := child.Load(at + 40*page.Size).Result(); !uffdtest.Gone(err) {
		t.Errorf("the child reads %d, %v, want its end by SIGBUS", got, err)
	}
	var lost *LostError
	if err := s.wait(t); !errors.As(err, &lost) {
		t.Errorf("Serve = %v, want a LostError", err)
	}
}

// What it has grown by is found out once, not for each page, and makes one mapping of what is below.
func TestSharedMemoryGrowsAtOnce(t *testing.T) {
	log := &said{"shared memory has grown", make(chan struct{}, 64)}
	handler := slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})
	s, child := growableOf(t, setting{pager: Options{Logger: slog.New(handler)}})
	defer child.Exit(0)
	at := s.grow(t, s.Thread)
	s.checkAt(t, s.Thread, at+32*page.Size, 32*page.Size, 32*page.Size)
	if n := len(log.once); n != 1 {
		t.Errorf("it was found %d times that it has grown, want once", n)
	}
	s.checkAt(t, s.Thread, at, 0, 32*page.Size)
	s.check(t, child)

	whole := page.Mapping{Range: page.RangeOf(testBase, 4*page.Size), Image: page.ImageShared, PageSize: page.Size, Shared: true}
	var l layout
	for i := range page.Addr(4) {
		l.join(cutProc(whole, page.RangeOf(testBase+i*page.Size, page.Size)))
	}
	apart := whole
	apart.Range, apart.Image = apart.Shift(4*page.Size), page.ImageShared+8*page.Size
	l.join(apart)
	if want := []page.Mapping{whole, apart}; !slices.Equal(l.byProc, want) || !slices.Equal(l.byImage, want) {
		t.Errorf("the layout is %v and %v, want %v", l.byProc, l.byImage, want)
	}
}

// Who touches it while there is no descriptor to look by waits for one, and loses nothing.
func TestSharedMemoryGrowsWithoutDescriptors(t *testing.T) {
	s, child := growable(t)
	defer child.Exit(0)
	at := s.grow(t, s.Thread)
	restore := s.noDescriptors(t)
	defer restore()
	touch := s.Load(at + 40*page.Size)
	if touch.Ready(20 * time.Millisecond) {
		t.Error("it did not wait")
	}
	restore()
	touch.Wait(t)
	s.checkAt(t, s.Thread, at+32*page.Size, 32*page.Size, 32*page.Size)
	s.checkAt(t, s.Thread, at, 0, 32*page.Size)
	s.check(t, child)
}

// A successor knows what a mapping had grown by, and so what was removed of that.
func TestGrownSharedMemoryAfterTakeOver(t *testing.T) {
	v := startVictim(t, setting{child: uffdtest.Options{Pages: 64, Kind: uffdtest.Shmem}, more: true}, false)
	child, pid := v.Fork(t)
	pid.Wait(t)
	v.Munmap(v.Addr(32), 32*page.Size).Wait(t)
	v.Mremap(v.Addr(0), 32*page.Size, 64*page.Size, 0, 0).Wait(t)
	v.checkAt(t, v.Thread, v.Addr(40), 40*page.Size, page.Size)
	v.Madvise(v.Addr(50), 4*page.Size, unix.MADV_REMOVE).Wait(t)
	v.killPager()
	v.resume(t)
	zero(t, v.Thread, v.Addr(50), 4*page.Size)
	zero(t, child, v.Addr(50), 4*page.Size)
	v.checkAt(t, v.Thread, v.Addr(54), 54*page.Size, 10*page.Size)
}

// Shared memory that was removed is zero also for a successor that knows nothing of the removal.
func TestRemovedSharedMemoryAfterTakeOver(t *testing.T) {
	v := startVictim(t, setting{child: uffdtest.Options{Pages: 64, Kind: uffdtest.Shmem}}, false)
	for range 200 { // the journal is compacted in between
		v.Madvise(v.Addr(10), 4*page.Size, unix.MADV_REMOVE).Wait(t)
	}
	v.killPager()
	removed := v.Load(v.Addr(11))
	rest := v.Sum(v.Addr(14), 50*page.Size)
	v.resume(t)
	if got := removed.Wait(t); got != 0 {
		t.Errorf("what was removed holds %d", got)
	}
	rest.Wait(t)
	zero(t, v.Thread, v.Addr(10), 4*page.Size)
	v.checkAt(t, v.Thread, v.Addr(14), 14*page.Size, 50*page.Size)
}
