package pager

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// A page that comes back for ever is lost; one for which very many threads wait is not.
func TestPageThatComesBack(t *testing.T) {
	for name, isThere := range map[string]bool{"missing": false, "there": true} {
		t.Run(name, func(t *testing.T) {
			se := fakeSession(t, 8, plainSource)
			m := &fakeMemory{
				vmas: []page.Range{page.RangeOf(testBase, 8*page.Size)}, pages: map[page.Addr]byte{}, lost: map[page.Addr]bool{},
				refuse: func() error { return nil },
			}
			const at = testBase + 3*page.Size
			if isThere {
				m.pages[at] = 4
			}
			s := fakeSpace(t, se, m)
			s.settle(3, 4)
			r := &reader{worker: *se.newWorker("reader")}
			defer r.close()
			for range stuckWakes + 2 {
				if v := r.wake(fault{s: s, addr: at}, 3); v != settled {
					t.Fatalf("the fault is %v", v)
				}
			}
			if m.lost[at] == isThere || (se.lost.err() == nil) != isThere {
				t.Errorf("poisoned: %v, told as %v", m.lost[at], se.lost.err())
			}
			if n := len(m.woken); n < stuckWakes || isThere && n != stuckWakes+2 {
				t.Errorf("they were woken %d times", n)
			}
		})
	}
}

// So are two, for which two threads take turns.
func TestPagesThatComeBackInTurns(t *testing.T) {
	se := fakeSession(t, 8, plainSource)
	m := &fakeMemory{
		vmas: []page.Range{page.RangeOf(testBase, 8*page.Size)}, pages: map[page.Addr]byte{}, lost: map[page.Addr]bool{},
		refuse: func() error { return nil },
	}
	s := fakeSpace(t, se, m)
	s.settle(0, 8)
	r := &reader{worker: *se.newWorker("reader")}
	defer r.close()
	for range stuckWakes + 1 {
		for _, n := range []int{3, 5} {
			if v := r.wake(fault{s: s, addr: testBase + page.Addr(n)*page.Size}, n); v != settled {
				t.Fatalf("the fault is %v", v)
			}
		}
	}
	if len(m.lost) != 2 {
		t.Errorf("%d pages of 2 are poisoned", len(m.lost))
	}
	clear(s.woken)
	for range 2 {
		for n := range page.Addr(maxWoken) {
			r.wake(fault{s: s, addr: n * page.Size}, 0)
		}
	}
	for addr, n := range s.woken {
		if n != 2 {
			t.Fatalf("%v was woken for %d times, want 2", addr, n)
		}
	}
	if r.wake(fault{s: s, addr: maxWoken * page.Size}, 0); len(s.woken) != 1 {
		t.Errorf("%d pages are remembered", len(s.woken))
	}
}

// A process whose source is away waits, for longer than any retry, and gets
// the right bytes in the end.
func TestLostSourceWaits(t *testing.T) {
	for _, bg := range []Background{None, Full} {
		t.Run(bg.String(), func(t *testing.T) {
			var r *remote
			var back atomic.Bool
			failed := make(chan struct{}, 1)
			s := serveChild(t, setting{
				child: uffdtest.Options{Pages: 64},
				pager: Options{Background: bg, Retry: time.Millisecond},
				source: remoteOf(&r, func(context.Context, image.Lane) error {
					if back.Load() {
						return nil
					}
					select {
					case failed <- struct{}{}:
					default:
					}
					return errLink
				}),
			})
			reply := s.Load(s.Addr(9))
			for range 4 { // tries
				<-failed
			}
			outage := func() bool { return s.pager.Stats().Outage != 0 } // a try is noted after it
			until(t, "the statistics do not say that nothing comes", outage)
			back.Store(true)
			if got, want := reply.Wait(t), uint64(s.want[9*4096]); got != want {
				t.Errorf("page 9 begins with %d, want %d", got, want)
			}
			s.check(t, s.Thread)
			until(t, "all came again, and the statistics do not say so", func() bool { return !outage() })
			if n := s.pager.Stats().PoisonedBytes; n != 0 {
				t.Errorf("%d bytes were poisoned", n)
			}
			if bg == None {
				s.Kill()
			}
			if err := s.wait(t); err != nil {
				t.Error(err)
			}
		})
	}
}

// With Kill nobody waits, and nobody sees a byte.
func TestLostSourceKills(t *testing.T) {
	for _, bg := range []Background{None, Full} {
		t.Run(bg.String(), func(t *testing.T) {
			var r *remote
			s := serveChild(t, setting{
				child:  uffdtest.Options{Pages: 64},
				pager:  Options{Background: bg, OnLost: Kill, Retry: 20 * time.Millisecond},
				source: remoteOf(&r, func(context.Context, image.Lane) error { return errLink }),
			})
			if got, err := s.Load(s.Addr(9)).Result(); !uffdtest.Gone(err) {
				t.Errorf("the thread that touched a lost page: %d, %v, want its end", got, err)
			}
			err := s.wait(t)
			var lost *LostError
			if !errors.As(err, &lost) || !errors.Is(err, errLink) {
				t.Errorf("Serve = %v, want a LostError with the reason", err)
			}
			if n := s.pager.Stats().PoisonedBytes; n != 0 {
				t.Errorf("%d bytes were poisoned", n)
			}
		})
	}
}

// What a pager that is stopped was fetching is not lost: who touched it waits
// on, for a successor.
func TestStopLosesNothing(t *testing.T) {
	for _, onLost := range []OnLost{Wait, Kill, Poison} {
		for _, bg := range []Background{None, Full} {
			t.Run(onLost.String()+"/"+bg.String(), func(t *testing.T) {
				var r *remote
				fetching := make(chan struct{}, 100)
				s := serveChild(t, setting{
					child: uffdtest.Options{Pages: 64},
					pager: Options{Background: bg, OnLost: onLost},
					source: remoteOf(&r, func(ctx context.Context, lane image.Lane) error {
						if lane == image.Demand {
							fetching <- struct{}{}
						}
						<-ctx.Done()
						return ctx.Err()
					}),
				})
				reply := s.Load(s.Addr(9))
				<-fetching
				s.stop()
				if err := s.wait(t); !errors.Is(err, context.Canceled) {
					t.Errorf("Serve = %v, want the context's error", err)
				}
				if reply.Ready(20 * time.Millisecond) {
					t.Error("the thread does not wait")
				}
				if n := s.pager.Stats().PoisonedBytes; n != 0 {
					t.Errorf("%d bytes were poisoned", n)
				}
			})
		}
	}
}

// A program that an exec has begun has lost nothing of what was lost before.
func TestLostSourceSparesAfterExec(t *testing.T) {
	var r *remote
	var lost atomic.Bool
	fetching, release := make(chan struct{}, 100), make(chan struct{})
	s := serveChild(t, setting{
		child: uffdtest.Options{Pages: 64, Threads: 2},
		pager: Options{Background: None, OnLost: Kill, Retry: time.Millisecond},
		source: remoteOf(&r, func(context.Context, image.Lane) error {
			if !lost.Load() {
				return nil
			}
			fetching <- struct{}{}
			<-release
			return errLink
		}),
	})
	s.Load(s.Addr(0)).Wait(t)
	lost.Store(true)
	s.Threads[1].Load(s.Addr(40))
	<-fetching
	execSleep(t, s)
	// No event tells of the exec.
	for deadline := time.Now().Add(uffdtest.Timeout); !hasEnded(s.pager.attached.fds[0]); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the child does not exec")
		}
	}
	close(release)
	if err := s.wait(t); err != nil {
		t.Errorf("Serve = %v, though nothing is missing any more", err)
	}
	if readable(s.pager.attached.target.PidFD) {
		t.Error("the new program was killed")
	}
}

// What only a forked child misses is not lost to its parent.
func TestLostSourceSparesWhoMissesNothing(t *testing.T) {
	uffdtest.Need(t, "POISON")
	var r *remote
	release := make(chan struct{})
	s := serveChild(t, setting{
		child: uffdtest.Options{Pages: 64},
		pager: Options{OnLost: Kill, Retry: time.Millisecond},
		source: remoteOf(&r, func(context.Context, image.Lane) error {
			<-release
			return errLink
		}),
	})
	th, pid := s.Fork(t)
	pid.Wait(t)
	s.Munmap(s.Start, s.Length).Wait(t)
	close(release)
	var lost *LostError
	if err := s.wait(t); !errors.As(err, &lost) {
		t.Errorf("Serve = %v, want a LostError", err)
	}
	s.Mmap(s.Start, s.Length, unix.PROT_READ, unix.MAP_PRIVATE).Wait(t) // it lives
	if got, err := th.Load(s.Addr(9)).Result(); !uffdtest.Gone(err) {
		t.Errorf("the child read %d, %v from a page that is lost, want its end", got, err)
	}
}

// Shared memory that is lost stays lost, also where it is looked at anew: by a
// child that is forked afterwards, and once it was dropped from the page table.
func TestLostSharedMemoryIsNeverZero(t *testing.T) {
	uffdtest.Need(t, "POISON")
	const bad = 2
	for _, anew := range []string{"forked", "dropped"} {
		t.Run(anew, func(t *testing.T) {
			s := serveChild(t, setting{
				child:  uffdtest.Options{Pages: 64, Kind: uffdtest.Shmem},
				writer: image.WriterOptions{ChunkSize: 4 * page.Size},
				damage: func(m *imagetest.Mem, ix *image.Index) {
					b := append([]byte(nil), m.Get("pages.raw")...)
					b[ix.Frame(bad).Offset+5] ^= 4
					m.Set("pages.raw", b)
				},
			})
			for deadline := time.Now().Add(uffdtest.Timeout); s.pager.Stats().PoisonedBytes < 4*page.Size || s.pager.Stats().MissingBytes > 0; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("not all is there or poisoned: %+v", s.pager.Stats())
				}
			}
			select {
			case err := <-s.done:
				t.Errorf("Serve returned while the process lives: %v", err)
			case <-time.After(20 * time.Millisecond): // nothing tells that it stays
			}
			th := s.Thread
			if anew == "forked" {
				var pid *uffdtest.Reply
				th, pid = s.Fork(t)
				pid.Wait(t)
			} else {
				s.Madvise(s.Start, s.Length, unix.MADV_DONTNEED).Wait(t)
			}
			// No page table tells of it, so a checkpoint has to be told.
			want := page.RangeOf(page.Addr(s.Addr(4*bad)), 4*page.Size)
			if owed := s.pager.Remaining(); len(owed) != 1 || owed[0].Range != want {
				t.Errorf("Remaining = %v, want %v, which is lost", owed, want)
			}
			s.checkAt(t, th, s.Addr(4), 4*page.Size, 4*page.Size)
			if got, err := th.Load(s.Addr(4*bad + 1)).Result(); !uffdtest.Gone(err) {
				t.Errorf("a page that is lost reads as %d, %v", got, err)
			}
			s.Kill()
			if err := s.wait(t); !errors.Is(err, image.ErrDamaged) {
				t.Errorf("Serve = %v, want ErrDamaged", err)
			}
		})
	}
}

// Huge pages that cannot be had are lost like others.
func TestLostHugePages(t *testing.T) {
	uffdtest.Need(t, "hugetlb", "POISON")
	for _, onLost := range []OnLost{Kill, Poison} {
		for _, bg := range []Background{None, Full} {
			t.Run(bg.String()+"/"+onLost.String(), func(t *testing.T) {
				var r *remote
				s := serveChild(t, setting{
					child:  uffdtest.Options{Pages: 1, Kind: uffdtest.Hugetlb},
					pager:  Options{Background: bg, OnLost: onLost, Retry: time.Millisecond},
					source: remoteOf(&r, func(context.Context, image.Lane) error { return errLink }),
				})
				if bg == None {
					if _, err := s.Load(s.Addr(0)).Result(); !uffdtest.Gone(err) {
						t.Errorf("the thread that touched it: %v, want its end", err)
					}
				}
				err := s.wait(t)
				var lost *LostError
				if !errors.As(err, &lost) || !errors.Is(err, errLink) {
					t.Errorf("Serve = %v, want a LostError with the reason", err)
				}
				if killed := s.pager.Stats().PoisonedBytes == 0; killed != (onLost == Kill) {
					t.Errorf("%d bytes were poisoned", s.pager.Stats().PoisonedBytes)
				}
			})
		}
	}
}

// An outage is told of by whoever notices, but not by each, and with its
// length and the reason.
func TestOutageLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text lockedBuffer
		log := slog.New(slog.NewTextHandler(&text, nil))
		var o outage
		var wg sync.WaitGroup
		for k := range 16 {
			wg.Go(func() {
				for range 3 * 60 * 10 {
					o.failed(log, fmt.Errorf("worker %d: %w", k, errLink))
					time.Sleep(100 * time.Millisecond)
				}
			})
		}
		wg.Wait()
		if d := o.lasts(); d != 3*time.Minute {
			t.Errorf("the outage lasts %v", d)
		}
		o.over(log)
		o.over(log)
		if d := o.lasts(); d != 0 {
			t.Errorf("the outage lasts %v after its end", d)
		}
		lines := strings.Split(strings.TrimSpace(text.String()), "\n")
		// After 1, 3, 7, 15, 31, 63 s and 123 s, and the end.
		if len(lines) != 8 {
			t.Errorf("%d lines in three minutes:\n%s", len(lines), text.String())
		}
		if !strings.Contains(lines[0], "for=1s") || !strings.Contains(lines[0], errLink.Error()) {
			t.Errorf("first line: %s", lines[0])
		}
		if last := lines[len(lines)-1]; !strings.Contains(last, "come again") || !strings.Contains(last, "after=3m0s") {
			t.Errorf("last line: %s", last)
		}
	})
}

// A lockedBuffer is a log that several write to.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Memory that was not registered yet when its frame was lost is poisoned later.
func TestLostFramePoisonsLater(t *testing.T) {
	uffdtest.Need(t, "POISON")
	const pages, half = 16, 8 * page.Size
	f := familyOf(t, 1, pages, image.WriterOptions{}, func(m *imagetest.Mem) {
		name := image.PagesObject(chunk.LZ4)
		b := bytes.Clone(m.Get(name))
		b[len(b)/2] ^= 4
		m.Set(name, b)
	})
	f.serve()
	s, u := f.children[0], f.children[0].FD
	if err := u.Unregister(s.Start+half, half); err != nil {
		t.Fatal(err)
	}
	f.attach(t, 0)
	if _, err := s.peek(s.Addr(3)); err == nil {
		t.Error("a page of the lost frame was read")
	}
	if _, err := u.Register(s.Start+half, half, uffd.ModeMissing); err != nil {
		t.Fatal(err)
	}
	f.pager.Gathered()
	if err := <-f.done; !errors.Is(err, image.ErrDamaged) {
		t.Errorf("ServeAttached = %v, want a LostError with the reason", err)
	}
	for i := range pages {
		if got, err := s.peek(s.Addr(i)); err == nil {
			t.Fatalf("page %d of the lost frame reads %d", i, got[0])
		}
	}
}
