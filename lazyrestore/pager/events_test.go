package pager

import (
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// Each event while pages are missing, once with nothing in memory yet and
// once with a part of it, without and with the background at work.

// both runs f for each background.
func both(t *testing.T, f func(t *testing.T, s *served)) {
	for _, bg := range []Background{None, Full} {
		for _, touch := range []bool{false, true} {
			name := bg.String() + map[bool]string{false: "/untouched", true: "/touched"}[touch]
			t.Run(name, func(t *testing.T) {
				s := serveChild(t, setting{
					child:  uffdtest.Options{Pages: 1024},
					writer: image.WriterOptions{ChunkSize: 16 << 10},
					pager:  Options{Background: bg},
				})
				if touch {
					for i := 0; i < 1024; i += 50 {
						s.Load(s.Addr(i)).Wait(t)
					}
				}
				f(t, s)
				if bg == Full {
					if err := s.wait(t); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
}

// zero expects n bytes of zeros at addr.
func zero(t *testing.T, th *uffdtest.Thread, addr uint64, n int) {
	t.Helper()
	if got, want := th.Sum(addr, uint64(n)).Wait(t), uffdtest.Sum(make([]byte, n)); got != want {
		t.Fatalf("memory at %#x, %d bytes: sum %#x, not that of zeros", addr, n, got)
	}
}

func TestRemoveWhileLazy(t *testing.T) {
	both(t, func(t *testing.T, s *served) {
		s.Madvise(s.Addr(100), 300*page.Size, unix.MADV_DONTNEED).Wait(t)
		zero(t, s.Thread, s.Addr(100), 300*page.Size)
		s.Store(s.Addr(150), 7).Wait(t)
		s.checkAt(t, s.Thread, s.Start, 0, 100*page.Size)
		s.checkAt(t, s.Thread, s.Addr(400), 400*page.Size, 624*page.Size)
		if got := s.Load(s.Addr(150)).Wait(t); got != 7 {
			t.Errorf("what was stored is now %d", got)
		}
	})
}

// A forked child finds zeros in memory that forks wipe, as far as that had come before.
func TestWipedByAFork(t *testing.T) {
	for _, bg := range []Background{None, Full} {
		t.Run(bg.String(), func(t *testing.T) {
			s := serveChild(t, setting{child: uffdtest.Options{Pages: 512}, pager: Options{Background: bg}})
			s.checkAt(t, s.Thread, s.Addr(32), 32*page.Size, 64*page.Size)
			s.Madvise(s.Addr(32), 64*page.Size, unix.MADV_WIPEONFORK).Wait(t)
			th, pid := s.Fork(t)
			pid.Wait(t)
			zero(t, th, s.Addr(32), 64*page.Size)
			s.checkAt(t, th, s.Addr(0), 0, 32*page.Size)
			s.checkAt(t, th, s.Addr(96), 96*page.Size, 416*page.Size)
			th.Store(s.Addr(33), 7).Wait(t)
			zero(t, th, s.Addr(34), 62*page.Size)
			s.check(t, s.Thread)
			if err := s.pager.lost.err(); err != nil {
				t.Error(err)
			}
		})
	}
}

// Shared memory that is dropped from the page table keeps its content, and
// loses it if it is removed, though the events are the same.
func TestRemoveSharedWhileLazy(t *testing.T) {
	for _, bg := range []Background{None, Full} {
		for _, advice := range []int{unix.MADV_DONTNEED, unix.MADV_REMOVE} {
			t.Run(bg.String()+map[int]string{unix.MADV_DONTNEED: "/dropped", unix.MADV_REMOVE: "/removed"}[advice], func(t *testing.T) {
				s := serveChild(t, setting{
					child: uffdtest.Options{Pages: 512, Kind: uffdtest.Shmem},
					pager: Options{Background: bg},
				})
				th, pid := s.Fork(t)
				pid.Wait(t)
				defer th.Exit(0)
				s.Load(s.Addr(100)).Wait(t)
				s.Madvise(s.Addr(90), 100*page.Size, advice).Wait(t)
				th.Madvise(s.Addr(300), 100*page.Size, advice).Wait(t)
				for _, th := range []*uffdtest.Thread{s.Thread, th} {
					if advice == unix.MADV_DONTNEED {
						s.check(t, th)
						continue
					}
					zero(t, th, s.Addr(90), 100*page.Size)
					zero(t, th, s.Addr(300), 100*page.Size)
					s.checkAt(t, th, s.Addr(190), 190*page.Size, 110*page.Size)
				}
			})
		}
	}
}

// Zeros that nobody has asked for yet overwrite no guard region.
func TestZerosSpareGuards(t *testing.T) {
	const guard, guardInstall = 7, 102 // MADV_GUARD_INSTALL
	for _, c := range []struct {
		name           string
		kind           uffdtest.Kind
		store, emptied bool // emptied: by the program, not in the image
	}{
		{name: "stored to", store: true},
		{name: "read"},
		{name: "emptied, stored to", emptied: true, store: true},
		{name: "emptied, read", emptied: true},
		{name: "shared, stored to", kind: uffdtest.Shmem, store: true},
		{name: "shared, read", kind: uffdtest.Shmem},
		{name: "shared, emptied, stored to", kind: uffdtest.Shmem, emptied: true, store: true},
		{name: "shared, emptied, read", kind: uffdtest.Shmem, emptied: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := serveChild(t, setting{
				child: uffdtest.Options{Pages: 64, Kind: c.kind},
				pager: Options{Background: None},
				zero:  func(n int) bool { return n < 32 && !c.emptied },
			})
			if c.emptied {
				advice := unix.MADV_DONTNEED
				if c.kind == uffdtest.Shmem {
					advice = unix.MADV_REMOVE
				}
				s.Madvise(s.Start, 32*page.Size, advice).Wait(t)
			}
			if _, err := s.Madvise(s.Addr(guard), page.Size, guardInstall).Result(); err != nil {
				uffdtest.NeedFunc(t, "guard regions", func() error { return err })
			}
			for _, n := range []int{1, 2, 3, 4, 5, 6, 8, 9, 10} { // in a row
				if c.store {
					s.Store(s.Addr(n), byte(n)).Wait(t)
				} else {
					s.Load(s.Addr(n)).Wait(t)
				}
			}
			if _, err := s.Syscall(unix.SYS_RT_SIGPROCMASK, 0, s.Addr(guard), 0, 8).Result(); !errors.Is(err, unix.EFAULT) {
				t.Errorf("a read of the guard: %v, want EFAULT", err)
			}
		})
	}
}

// Many threads drop and remove shared memory at once, while others compute: it is seen
// who asked for what, and nothing is lost.
func TestRemovalsByManyThreads(t *testing.T) {
	const threads, each, rounds = 6, 256, 150
	s := serveChild(t, setting{
		child: uffdtest.Options{Pages: threads * each, Threads: threads, Kind: uffdtest.Shmem},
		pager: Options{Background: None},
	})
	var wg sync.WaitGroup
	for i, th := range s.Threads {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(7, uint64(i)))
			var removed [each]bool
			for range rounds {
				from := rnd.IntN(each)
				n := 1 + rnd.IntN(min(8, each-from))
				advice := unix.MADV_DONTNEED
				if rnd.IntN(2) == 0 {
					advice = unix.MADV_REMOVE
				}
				if _, err := th.Madvise(s.Addr(i*each+from), uint64(n)*page.Size, advice).Result(); err != nil {
					t.Error(err)
					return
				}
				for k := from; k < from+n; k++ {
					removed[k] = removed[k] || advice == unix.MADV_REMOVE
				}
			}
			for k, gone := range removed {
				want := s.want[(i*each+k)*page.Size:][:page.Size]
				if gone {
					want = make([]byte, page.Size)
				}
				if got, err := th.Sum(s.Addr(i*each+k), page.Size).Result(); err != nil || got != uffdtest.Sum(want) {
					t.Errorf("thread %d, page %d, removed %v: sum %#x, %v", i, k, gone, got, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if err := s.pager.session.lost.err(); err != nil {
		t.Error(err)
	}
}

func TestUnmapWhileLazy(t *testing.T) {
	both(t, func(t *testing.T, s *served) {
		s.Munmap(s.Addr(100), 300*page.Size).Wait(t)
		s.Mmap(s.Addr(100), 100*page.Size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_FIXED).Wait(t)
		zero(t, s.Thread, s.Addr(100), 100*page.Size)
		s.checkAt(t, s.Thread, s.Start, 0, 100*page.Size)
		s.checkAt(t, s.Thread, s.Addr(400), 400*page.Size, 624*page.Size)
	})
}

func TestRemapWhileLazy(t *testing.T) {
	both(t, func(t *testing.T, s *served) {
		to := s.Start + 1<<30
		s.Mremap(s.Addr(100), 300*page.Size, 300*page.Size, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, to).Wait(t)
		s.checkAt(t, s.Thread, to, 100*page.Size, 300*page.Size)
		// Onto another part of it, and growing.
		s.Mremap(s.Addr(500), 50*page.Size, 60*page.Size, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, s.Addr(900)).Wait(t)
		s.checkAt(t, s.Thread, s.Addr(900), 500*page.Size, 50*page.Size)
		zero(t, s.Thread, s.Addr(950), 10*page.Size)
		s.checkAt(t, s.Thread, s.Start, 0, 100*page.Size)
		s.checkAt(t, s.Thread, s.Addr(400), 400*page.Size, 100*page.Size)
		s.checkAt(t, s.Thread, s.Addr(550), 550*page.Size, 350*page.Size)
		s.checkAt(t, s.Thread, s.Addr(960), 960*page.Size, 64*page.Size)
	})
}

// What MREMAP_DONTUNMAP leaves behind is zero, and still registered.
func TestRemapDontUnmapWhileLazy(t *testing.T) {
	const dontUnmap = 4
	both(t, func(t *testing.T, s *served) {
		to := s.Start + 1<<30
		s.Mremap(s.Addr(100), 300*page.Size, 300*page.Size, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED|dontUnmap, to).Wait(t)
		s.checkAt(t, s.Thread, to, 100*page.Size, 300*page.Size)
		zero(t, s.Thread, s.Addr(100), 300*page.Size)
	})
}

// Of shared memory it leaves the same behind: the place is another mapping of it.
func TestRemapDontUnmapSharedWhileLazy(t *testing.T) {
	const dontUnmap = 4
	for _, bg := range []Background{None, Full} {
		for _, first := range []string{"here", "there"} {
			t.Run(bg.String()+"/touched "+first, func(t *testing.T) {
				s := serveChild(t, setting{child: uffdtest.Options{Pages: 512, Kind: uffdtest.Shmem}, pager: Options{Background: bg}})
				s.Load(s.Addr(100)).Wait(t)
				to := s.Start + 1<<30
				s.Mremap(s.Addr(50), 300*page.Size, 300*page.Size, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED|dontUnmap, to).Wait(t)
				if first == "there" {
					s.checkAt(t, s.Thread, to, 50*page.Size, 300*page.Size)
				}
				s.check(t, s.Thread)
				s.checkAt(t, s.Thread, to, 50*page.Size, 300*page.Size)
				if bg == Full {
					if err := s.wait(t); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
}

// A mapping that mprotect has split is filled all the same.
func TestProtectWhileLazy(t *testing.T) {
	both(t, func(t *testing.T, s *served) {
		for i := 3; i < 1024; i += 7 {
			s.Mprotect(s.Addr(i), page.Size, unix.PROT_READ).Wait(t)
		}
		s.check(t, s.Thread)
	})
}

func TestForkWhileLazy(t *testing.T) {
	both(t, func(t *testing.T, s *served) {
		th, pid := s.Fork(t)
		pid.Wait(t)
		s.Store(s.Addr(3), 1).Wait(t) // the parent's page alone
		s.Madvise(s.Addr(200), 100*page.Size, unix.MADV_DONTNEED).Wait(t)
		s.check(t, th)
		zero(t, s.Thread, s.Addr(200), 100*page.Size)
		s.checkAt(t, s.Thread, s.Addr(300), 300*page.Size, 724*page.Size)
		if got := s.Load(s.Addr(3)).Wait(t); got != 1 {
			t.Errorf("what the parent stored is now %d", got)
		}
	})
}

// The parent ends; its child goes on being served.
func TestExitLeavesForkedChild(t *testing.T) {
	for _, bg := range []Background{None, Full} {
		t.Run(bg.String(), func(t *testing.T) {
			s := serveChild(t, setting{child: uffdtest.Options{Pages: 256}, pager: Options{Background: bg}})
			th, pid := s.Fork(t)
			child := int(pid.Wait(t))
			s.Exit(0)
			s.check(t, th)
			if bg == None {
				if err := unix.Kill(child, unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.wait(t); err != nil {
				t.Error(err)
			}
		})
	}
}

// execSleep has the child become another program, by way of its first page.
func execSleep(t *testing.T, s *served) {
	t.Helper()
	path := "/bin/sleep\x00"
	for i := range len(path) {
		s.Store(s.Addr(0)+uint64(i), path[i]).Wait(t)
	}
	const program, argv, arg1 = 0, 64, 32
	for i, c := range "30\x00" {
		s.Store(s.Addr(0)+arg1+uint64(i), byte(c)).Wait(t)
	}
	for i, ptr := range []uint64{s.Addr(0) + program, s.Addr(0) + arg1, 0} {
		for k := range 8 {
			s.Store(s.Addr(0)+argv+uint64(8*i+k), byte(ptr>>(8*k))).Wait(t)
		}
	}
	s.Syscall(unix.SYS_EXECVE, s.Addr(0), s.Addr(0)+argv, 0)
}

// A forked child that has ended is let go of also where the reader never has nothing to do for long.
func TestEndedChildIsLetGoOfAmongEvents(t *testing.T) {
	s := serveChild(t, setting{child: uffdtest.Options{Pages: 256}, pager: Options{Background: None}})
	_, pid := s.Fork(t)
	if err := unix.Kill(int(pid.Wait(t)), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	spaces := func() int {
		s.pager.mu.Lock()
		defer s.pager.mu.Unlock()
		return len(*s.pager.session.spaces.Load())
	}
	for end := time.Now().Add(uffdtest.Timeout); spaces() > 1; time.Sleep(tick / 100) {
		if time.Now().After(end) {
			t.Fatal("it still has the child's userfaultfd")
		}
		s.Madvise(s.Addr(7), page.Size, unix.MADV_DONTNEED).Wait(t)
	}
}

// After an exec the old memory is gone, and nothing tells but a probe.
func TestExecWhileLazy(t *testing.T) {
	s := serveChild(t, setting{child: uffdtest.Options{Pages: 256}, pager: Options{Background: None}})
	execSleep(t, s)
	if err := s.wait(t); err != nil {
		t.Error(err)
	}
	if err := unix.Kill(s.Pid, 0); err != nil {
		t.Errorf("the process did not live on: %v", err)
	}
}

// A system call that reads missing memory is served as a thread is.
func TestSystemCallFault(t *testing.T) {
	s := serveChild(t, setting{child: uffdtest.Options{Pages: 64}, pager: Options{Background: None}})
	got := make([]byte, page.Size)
	local := []unix.Iovec{{Base: &got[0], Len: page.Size}}
	remote := []unix.RemoteIovec{{Base: uintptr(s.Addr(9)), Len: page.Size}}
	if _, err := unix.ProcessVMReadv(s.Pid, local, remote, 0); err != nil {
		t.Fatal(err)
	}
	if uffdtest.Sum(got) != uffdtest.Sum(s.want[9*page.Size:10*page.Size]) {
		t.Error("process_vm_readv read something else")
	}
}

func TestHugetlb(t *testing.T) {
	uffdtest.Need(t, "hugetlb")
	for _, kind := range []uffdtest.Kind{uffdtest.Hugetlb, uffdtest.HugetlbShared} {
		for _, bg := range []Background{None, Full} {
			t.Run(bg.String()+map[uffdtest.Kind]string{uffdtest.Hugetlb: "/private", uffdtest.HugetlbShared: "/shared"}[kind], func(t *testing.T) {
				s := serveChild(t, setting{
					child: uffdtest.Options{Pages: 2, Kind: kind},
					pager: Options{Background: bg},
					zero:  func(i int) bool { return i%512 > 400 },
				})
				s.Madvise(s.Addr(1), uint64(s.PageSize), unix.MADV_DONTNEED).Wait(t)
				s.checkAt(t, s.Thread, s.Start, 0, s.PageSize)
				if kind == uffdtest.Hugetlb {
					zero(t, s.Thread, s.Addr(1), s.PageSize)
				}
				if bg == Full {
					if err := s.wait(t); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
}

// Of shared huge pages a part can be removed. What is there the kernel sees to; of what is missing
// nobody could tell the rest from it.
func TestRemovePartsOfHugePages(t *testing.T) {
	uffdtest.Need(t, "hugetlb", "POISON")
	s := serveChild(t, setting{child: uffdtest.Options{Pages: 5, Kind: uffdtest.HugetlbShared}, pager: Options{Background: None}})
	size := s.PageSize
	s.Load(s.Addr(0)).Wait(t)
	s.Madvise(s.Addr(0)+page.Size, uint64(2*size), unix.MADV_REMOVE).Wait(t)
	s.checkAt(t, s.Thread, s.Addr(0), 0, page.Size)
	zero(t, s.Thread, s.Addr(0)+page.Size, size-page.Size)
	zero(t, s.Thread, s.Addr(1), size)
	for range 2 {
		if got, err := s.peek(s.Addr(2) + 7*page.Size); err == nil {
			t.Errorf("a page of which a part was removed reads %d", got[0])
		}
		s.Madvise(s.Addr(2), uint64(size), unix.MADV_DONTNEED).Wait(t)
	}
	s.checkAt(t, s.Thread, s.Addr(3), 3*size, size)
	s.Madvise(s.Addr(4)+page.Size, page.Size, unix.MADV_REMOVE).Wait(t) // within one
	if got, err := s.peek(s.Addr(4) + 9*page.Size); err == nil {
		t.Errorf("a page of which a part was removed reads %d", got[0])
	}
	s.Kill()
	if err := s.wait(t); !errors.Is(err, errPartRemoved) {
		t.Errorf("Serve = %v, want a LostError with the reason", err)
	}
}

// Remaining tells a checkpoint which pages are in the image alone.
func TestRemaining(t *testing.T) {
	s := serveChild(t, setting{
		child:  uffdtest.Options{Pages: 64},
		writer: image.WriterOptions{ChunkSize: 4 * page.Size},
		pager:  Options{Background: None},
	})
	s.Load(s.Addr(21)).Wait(t)
	// The fault's page comes first, the rest of its chunk a moment later.
	deadline := time.Now().Add(uffdtest.Timeout)
	for s.pager.Stats().InstalledBytes < 4*page.Size && time.Now().Before(deadline) {
		runtime.Gosched()
	}
	s.Madvise(s.Addr(40), 8*page.Size, unix.MADV_DONTNEED).Wait(t)
	// A chunk is the memory between two multiples of its size.
	chunk := page.Addr(s.Addr(21)) &^ (4*page.Size - 1)
	want := []page.Range{
		{Start: page.Addr(s.Addr(0)), End: chunk},
		{Start: chunk + 4*page.Size, End: page.Addr(s.Addr(40))},
		page.RangeOf(page.Addr(s.Addr(48)), 16*page.Size),
	}
	var got []page.Range
	for _, m := range s.pager.Remaining() {
		if m.Image != m.Start {
			t.Errorf("mapping %+v: wrong image address", m)
		}
		got = append(got, m.Range)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Remaining (-want +got):\n%s", diff)
	}
}
