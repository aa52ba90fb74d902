package pager

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// Of linux/mman.h.
const madvGuardInstall, madvGuardRemove = 102, 103

// guard installs a guard region at page n.
func (s *served) guard(t *testing.T, n, pages int) {
	t.Helper()
	if _, err := s.Madvise(s.Addr(n), uint64(pages)*page.Size, madvGuardInstall).Result(); err != nil {
		uffdtest.NeedFunc(t, "guard regions", func() error { return err })
	}
}

// guarded expects a guard at page n.
func (s *served) guarded(t *testing.T, n int) {
	t.Helper()
	if _, err := s.Syscall(unix.SYS_RT_SIGPROCMASK, 0, s.Addr(n), 0, 8).Result(); !errors.Is(err, unix.EFAULT) {
		t.Errorf("page %d is read, error %v: want EFAULT, of a guard", n, err)
	}
}

func (s *served) unguard(t *testing.T, n, pages int) {
	t.Helper()
	s.Madvise(s.Addr(n), uint64(pages)*page.Size, madvGuardRemove).Wait(t)
}

// Guards that are installed over missing memory stay, and where they are removed private memory
// is zero and shared memory what it was.
func TestGuardsWhileLazy(t *testing.T) {
	for _, kind := range []uffdtest.Kind{uffdtest.Anonymous, uffdtest.Shmem} {
		for _, bg := range []Background{None, Full} {
			t.Run(map[uffdtest.Kind]string{uffdtest.Anonymous: "private/", uffdtest.Shmem: "shared/"}[kind]+bg.String(), func(t *testing.T) {
				release := make(chan struct{})
				s := serveChild(t, setting{
					child:  uffdtest.Options{Pages: 256, Kind: kind},
					writer: image.WriterOptions{ChunkSize: 64 << 10},
					pager:  Options{Background: bg, Runs: release},
				})
				s.guard(t, 5, 1)
				s.guard(t, 9, 3)
				s.guard(t, 100, 8)
				close(release)
				for n := range 256 { // all that is beside them comes
					if n != 5 && (n < 9 || n > 11) && (n < 100 || n > 107) {
						s.checkAt(t, s.Thread, s.Addr(n), n*page.Size, page.Size)
					}
				}
				if bg == Full && kind == uffdtest.Anonymous {
					if err := s.wait(t); err != nil { // the guards are not waited for
						t.Fatal(err)
					}
				}
				for n := range 256 {
					if n == 5 || n >= 9 && n <= 11 || n >= 100 && n <= 107 {
						s.guarded(t, n)
					}
				}
				s.unguard(t, 0, 256)
				for _, r := range [][2]int{{5, 1}, {9, 3}, {100, 8}} {
					if kind == uffdtest.Anonymous {
						zero(t, s.Thread, s.Addr(r[0]), r[1]*page.Size)
					} else {
						s.checkAt(t, s.Thread, s.Addr(r[0]), r[0]*page.Size, r[1]*page.Size)
					}
				}
				if bg == Full && kind == uffdtest.Shmem {
					if err := s.wait(t); err != nil {
						t.Fatal(err)
					}
				}
			})
		}
	}
}

// Memory that has come, was guarded and is so no more is missing again, and zero.
func TestGuardsOverWhatHasCome(t *testing.T) {
	s := serveChild(t, setting{child: uffdtest.Options{Pages: 256}, pager: Options{Background: None}})
	s.checkAt(t, s.Thread, s.Start, 0, 64*page.Size)
	s.guard(t, 5, 8)
	s.guarded(t, 7)
	s.unguard(t, 5, 8)
	start := time.Now()
	zero(t, s.Thread, s.Addr(5), 8*page.Size)
	t.Log("took", time.Since(start))
}

// So it is in a forked child, where no guard is known of.
func TestGuardsOverWhatHasComeToAChild(t *testing.T) {
	s := serveChild(t, setting{child: uffdtest.Options{Pages: 256}, pager: Options{Background: None}})
	s.checkAt(t, s.Thread, s.Start, 0, 64*page.Size)
	th, pid := s.Fork(t)
	pid.Wait(t)
	guardAt(t, th, s.Addr(5), 8*page.Size)
	th.Madvise(s.Addr(5), 8*page.Size, madvGuardRemove).Wait(t)
	zero(t, th, s.Addr(5), 8*page.Size)
	s.checkAt(t, s.Thread, s.Start, 0, 64*page.Size)
	th.Exit(0)
}

// So it is where many threads had waited for the page, which was there each time that it was looked for a guard.
func TestGuardOverWhatManyHaveWaitedFor(t *testing.T) {
	uffdtest.Need(t, "uffd")
	c := uffdtest.Start(t, uffdtest.Options{Pages: 16, Features: events})
	l, err := newLayout([]page.Mapping{{Range: page.RangeOf(page.Addr(c.Start), c.Length), Image: page.Addr(c.Start), PageSize: page.Size}})
	if err != nil {
		t.Fatal(err)
	}
	books := &world{}
	se := fakeSessionAt(t, page.Addr(c.Start), 16, plainSource)
	s := newSpace(se.pages, books.add(c.FD.Fd(), c.Pid, l), c.FD, c.FD, nil)
	defer s.guards.close()
	se.spaces.Store(&[]*space{s})
	j, err := newJournal(books)
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	r := &reader{worker: *se.newWorker("reader"), world: books, journal: j, zeros: make([]byte, maxZero)}
	defer r.close()
	content := bytes.Repeat([]byte{7}, 16*page.Size)
	if out, err := r.install(s, content, 0, 0, 16); out != there {
		t.Fatal(out, err)
	}
	f := fault{s: s, addr: page.Addr(c.Addr(5))}
	for range 2*zapWakes - 1 {
		if v := r.wake(f, 5); v != settled {
			t.Fatalf("one of many is %v", v)
		}
	}
	if _, ok := s.find(f.addr); !ok {
		t.Fatal("a page that is there is taken for a guard's")
	}
	guardAt(t, c.Threads[0], c.Addr(5), page.Size)
	c.Threads[0].Madvise(c.Addr(5), page.Size, madvGuardRemove).Wait(t)
	touch := c.Threads[0].Load(c.Addr(5))
	for !touch.Ready(0) {
		if _, ok := s.find(f.addr); !ok {
			break // and zero from now on
		}
		if v := r.wake(f, 5); v != settled {
			t.Fatalf("the one that was guarded is %v", v)
		}
	}
	if got, err := touch.Result(); got != 0 || err != nil {
		t.Errorf("what was guarded is %d, %v, want 0", got, err)
	}
	if err := se.lost.err(); err != nil {
		t.Error(err)
	}
}

// By the guards of another process memory would be lost: a pid may be another's by now.
func TestGuardsAreOfTheSpace(t *testing.T) {
	uffdtest.Need(t, "uffd")
	for name, own := range map[string]bool{"own": true, "another's": false} {
		t.Run(name, func(t *testing.T) {
			c := uffdtest.Start(t, uffdtest.Options{Pages: 8, Features: events})
			se := fakeSessionAt(t, page.Addr(c.Start), 8, plainSource)
			l, err := newLayout([]page.Mapping{{Range: page.RangeOf(page.Addr(c.Start), c.Length), Image: page.Addr(c.Start), PageSize: page.Size}})
			if err != nil {
				t.Fatal(err)
			}
			pid := os.Getpid()
			if own {
				pid = c.Pid
			}
			s := newSpace(se.pages, (&world{}).add(c.FD.Fd(), pid, l), c.FD, c.FD, nil)
			defer s.guards.close()
			w := se.newWorker("test")
			defer w.close()
			for i := range 3 {
				if out, err := w.install(s, make([]byte, 8*page.Size), 0, 2*i, 2*i+2); out != there {
					t.Fatal(out, err)
				}
			}
			if got := s.guards.scan.Load() != nil; got != own {
				t.Errorf("guards are looked for: %v, want %v", got, own)
			}
			if left := s.left.Load(); left != 2 {
				t.Errorf("%d pages are left, want 2", left)
			}
			c.Kill()
			if out, err := w.install(s, make([]byte, 8*page.Size), 0, 6, 8); out != dead {
				t.Errorf("when the process has ended: %v, %v", out, err)
			}
		})
	}
}

// underGuards is a child of 16 pages that is looked for guards; nobody reads its events.
func underGuards(t *testing.T, kind uffdtest.Kind) (*uffdtest.Child, *session, *space, *worker) {
	t.Helper()
	c, se, s, w := notYetUnderGuards(t, kind)
	if out, err := w.install(s, make([]byte, 16*page.Size), 0, 0, 2); out != there {
		t.Fatal(out, err)
	}
	if s.guards.scan.Load() == nil {
		t.Fatal("no guards are looked for")
	}
	return c, se, s, w
}

func notYetUnderGuards(t *testing.T, kind uffdtest.Kind) (*uffdtest.Child, *session, *space, *worker) {
	t.Helper()
	uffdtest.Need(t, "uffd")
	c := uffdtest.Start(t, uffdtest.Options{Pages: 16, Features: events, Threads: 2, Kind: kind})
	m := page.Mapping{Range: page.RangeOf(page.Addr(c.Start), c.Length), Image: page.Addr(c.Start), PageSize: page.Size}
	if m.Shared = kind == uffdtest.Shmem; m.Shared {
		m.Image = page.ImageShared
	}
	se := fakeSessionAt(t, m.Image, 16, plainSource)
	l, err := newLayout([]page.Mapping{m})
	if err != nil {
		t.Fatal(err)
	}
	s := newSpace(se.pages, (&world{}).add(c.FD.Fd(), c.Pid, l), c.FD, c.FD, nil)
	se.spaces.Store(&[]*space{s})
	t.Cleanup(s.guards.close)
	w := se.newWorker("test")
	t.Cleanup(w.close)
	return c, se, s, w
}

func guardAt(t *testing.T, th *uffdtest.Thread, at, n uint64) {
	t.Helper()
	if _, err := th.Madvise(at, n, madvGuardInstall).Result(); err != nil {
		uffdtest.NeedFunc(t, "guard regions", func() error { return err })
	}
}

// A guard in what was mapped where memory has moved away from says nothing of what has moved.
func TestGuardWhereMemoryMovedAway(t *testing.T) {
	c, _, s, w := underGuards(t, uffdtest.Anonymous)
	const n = 8 * page.Size
	from := c.Addr(4)
	moved := c.Threads[0].Mremap(from, n, n, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, c.Start+1<<30)
	anew := unix.MAP_PRIVATE | unix.MAP_FIXED_NOREPLACE
	for end := time.Now().Add(uffdtest.Timeout); ; {
		_, err := c.Threads[1].Mmap(from, n, unix.PROT_READ|unix.PROT_WRITE, anew).Result()
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EEXIST) || time.Now().After(end) {
			t.Fatal(err)
		}
	}
	guardAt(t, c.Threads[1], from, n)
	left := s.left.Load()
	if out, err := w.install(s, make([]byte, 16*page.Size), 0, 4, 12); out != again {
		t.Errorf("outcome %v, %v: want %v", out, err, again)
	}
	if met := s.guards.take(); len(met) > 0 || s.left.Load() != left {
		t.Errorf("%v are taken for guarded, and %d pages for dealt with", met, left-s.left.Load())
	}
	if moved.Ready(0) {
		t.Error("somebody has read of the move")
	}
}

// A thread that waits for a page over which a guard is installed meets the guard once that is seen.
func TestGuardOverWhatIsWaitedFor(t *testing.T) {
	for name, kind := range map[string]uffdtest.Kind{"private": uffdtest.Anonymous, "shared": uffdtest.Shmem} {
		t.Run(name, func(t *testing.T) {
			c, _, s, w := underGuards(t, kind)
			waits := c.Threads[0].Syscall(unix.SYS_RT_SIGPROCMASK, 0, c.Addr(5), 0, 8)
			if !uffdtest.Readable(c.FD.Fd(), uffdtest.Timeout) {
				t.Fatal("no fault")
			}
			guardAt(t, c.Threads[1], c.Addr(5), page.Size)
			if out, err := w.install(s, make([]byte, 16*page.Size), 0, 4, 8); out != there {
				t.Fatal(out, err)
			}
			if !waits.Ready(uffdtest.Timeout) {
				t.Fatal("the thread still waits")
			}
			if _, err := waits.Result(); !errors.Is(err, unix.EFAULT) {
				t.Errorf("it reads, error %v: want EFAULT, of the guard", err)
			}
		})
	}
}

// Where there is no descriptor to look for guards, memory comes without a look, and with one once there is.
func TestGuardsWithoutDescriptors(t *testing.T) {
	_, _, s, w := notYetUnderGuards(t, uffdtest.Anonymous)
	install := func(i, j int) {
		t.Helper()
		if out, err := w.install(s, make([]byte, 16*page.Size), 0, i, j); out != there || s.left.Load() != int64(16-j) {
			t.Errorf("outcome %v, %v, and %d pages are missing, want %d", out, err, s.left.Load(), 16-j)
		}
	}
	restore := noDescriptors(t)
	for i := range 2 * maxVain {
		install(i, i+1)
	}
	restore()
	install(2*maxVain, 2*maxVain+2)
	if s.guards.scan.Load() == nil {
		t.Error("no guards are looked for")
	}
}
