package pager

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// An unindexed is a source that does not give the index.
type unindexed struct {
	image.Source
	err   error         // what it gives instead; nil: it does not answer
	asked chan struct{} // gets a token for the first try
	tries atomic.Int32
}

func (u *unindexed) ReadRange(ctx context.Context, object string, p []byte, off int64, lane image.Lane) error {
	if object != "pages.idx" {
		return u.Source.ReadRange(ctx, object, p, off, lane)
	}
	if u.tries.Add(1) == 1 {
		close(u.asked)
	}
	if u.err != nil {
		return u.err
	}
	<-ctx.Done()
	return ctx.Err()
}

func unindexedOf(u **unindexed, err error) func(*imagetest.Mem) image.Source {
	return func(m *imagetest.Mem) image.Source {
		*u = &unindexed{Source: m, err: err, asked: make(chan struct{})}
		return *u
	}
}

// ended reports whether the process pid, a keeper, is no more.
func ended(pid int) bool { return errors.Is(unix.Kill(pid, 0), unix.ESRCH) }

// A process that ends while its index is waited for leaves nobody waiting.
func TestEndsBeforeTheIndexComes(t *testing.T) {
	for _, err := range []error{nil, errLink} {
		t.Run(fmt.Sprint(err), func(t *testing.T) {
			var src *unindexed
			s := serveChild(t, setting{child: uffdtest.Options{Pages: 16}, source: unindexedOf(&src, err)})
			<-src.asked
			keeper := s.pager.opts.Keeper.Pid()
			s.Kill()
			if err := s.wait(t); err != nil {
				t.Error(err)
			}
			if !ended(keeper) {
				t.Error("the keeper lives on")
			}
		})
	}
}

// Where the index cannot be had nor waited for, the process is killed.
func TestLostIndexKills(t *testing.T) {
	for _, c := range []struct {
		onLost OnLost
		err    error
	}{
		{Kill, errLink},
		{Poison, errLink},
		{Wait, image.ErrDamaged},
	} {
		t.Run(fmt.Sprint(c.onLost, " ", c.err), func(t *testing.T) {
			var src *unindexed
			s := serveChild(t, setting{
				child:  uffdtest.Options{Pages: 16},
				pager:  Options{OnLost: c.onLost, Retry: 20 * time.Millisecond},
				source: unindexedOf(&src, c.err),
			})
			if got, err := s.Load(s.Addr(9)).Result(); !uffdtest.Gone(err) {
				t.Errorf("the thread that touched a page: %d, %v, want its end", got, err)
			}
			err := s.wait(t)
			var lost *LostError
			if !errors.As(err, &lost) || !errors.Is(err, c.err) {
				t.Errorf("Serve = %v, want a LostError with the reason", err)
			}
		})
	}
}

// A pager that is given up leaves nothing behind, however far it had come.
func TestDiscard(t *testing.T) {
	newPager := func(t *testing.T, src func(*imagetest.Mem) image.Source) *Pager {
		keeper, err := StartKeeper()
		if err != nil {
			t.Fatal(err)
		}
		p, err := New(fakeSession(t, 4, src).img, Options{Keeper: keeper})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	discard := func(t *testing.T, p *Pager) {
		t.Helper()
		for range 2 {
			if err := p.Discard(); err != nil {
				t.Error(err)
			}
		}
		if !ended(p.opts.Keeper.Pid()) {
			t.Error("the keeper lives on")
		}
		if err := p.Prepare(t.Context()); err == nil {
			t.Error("Prepare loads an index that nobody gives back")
		}
	}
	t.Run("new", func(t *testing.T) { discard(t, newPager(t, plainSource)) })
	t.Run("prepared", func(t *testing.T) {
		p := newPager(t, plainSource)
		if err := p.Prepare(t.Context()); err != nil {
			t.Fatal(err)
		}
		discard(t, p)
	})
	t.Run("attached", func(t *testing.T) {
		uffdtest.Need(t, "uffd")
		c := uffdtest.Start(t, uffdtest.Options{Pages: 4, Features: events})
		p := newPager(t, plainSource)
		u := c.FD
		c.FD = nil
		maps := []page.Mapping{{Range: page.RangeOf(page.Addr(c.Start), c.Length), Image: testBase, PageSize: page.Size}}
		if err := p.Attach(u, Target{Pid: c.Pid, PidFD: -1}, maps); err != nil {
			t.Fatal(err)
		}
		if err := p.Discard(); err != nil || ended(p.opts.Keeper.Pid()) || u.Fd() < 0 {
			t.Fatalf("a process that misses pages is let go (%v)", err)
		}
		c.Kill()
		discard(t, p)
	})
	t.Run("served", func(t *testing.T) {
		s := serveChild(t, setting{child: uffdtest.Options{Pages: 64}, pager: Options{Background: None}})
		s.Load(s.Addr(5)).Wait(t)
		s.stop()
		if err := s.wait(t); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		fd := s.pager.attached.fds[0].Fd()
		if err := s.pager.Discard(); err != nil || ended(s.pager.opts.Keeper.Pid()) || s.pager.attached.fds[0].Fd() != fd {
			t.Fatalf("a process that misses pages is let go (%v)", err)
		}
		s.Kill()
		discard(t, s.pager)
		if s.pager.attached.fds[0].Fd() >= 0 {
			t.Error("its userfaultfd is still open")
		}
	})
}

// Of a process whose last missing page is brought by a fault, nothing but the
// reader knows that it is complete: it does not sleep over that.
func TestLastPageByFault(t *testing.T) {
	least := tick
	for try := 0; least > tick/2 && try < 10; try++ { // one may be held up by other programs
		s := serveChild(t, setting{child: uffdtest.Options{Pages: 16}, pager: Options{Background: None}})
		for n := range 16 {
			s.Load(s.Addr(n)).Wait(t)
		}
		last := time.Now()
		if err := s.wait(t); err != nil {
			t.Fatal(err)
		}
		least = min(least, time.Since(last))
		s.check(t, s.Thread)
	}
	if least > tick/2 {
		t.Errorf("the pager leaves after %v, with the look that it takes each %v", least, tick)
	}
}

// That the process has ended is noticed at once, though a worker has stepped aside for faults and the
// reader does not sleep for as long as it else might.
func TestEndIsNoticedWhileSomebodyIsAside(t *testing.T) {
	cmd := exec.Command("/bin/true")
	pidfd := -1
	cmd.SysProcAttr = &syscall.SysProcAttr{PidFD: &pidfd}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(pidfd) }()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	se := fakeSession(t, 4, plainSource)
	se.target.PidFD = pidfd
	se.aside.Store(1)
	r := &reader{worker: *se.newWorker("reader"), probed: int64(time.Hour)}
	defer r.close()
	if err := r.rest(); err != nil || !r.pidGone || r.kicks.Load() == 0 {
		t.Errorf("%v; gone %v, looked %d times who has ended", err, r.pidGone, r.kicks.Load())
	}
}

// That nothing is missing any more is said before the last process that lives is let go of, though children that
// have ended are still in the books: a keeper has nobody to wait for then.
func TestLastOfThoseThatLive(t *testing.T) {
	uffdtest.Need(t, "uffd")
	se := fakeSession(t, 4, plainSource)
	w := &world{}
	var list []*space
	var children []*uffdtest.Child
	for range 3 {
		c := uffdtest.Start(t, uffdtest.Options{Pages: 4, Features: events})
		l, err := newLayout([]page.Mapping{{Range: page.RangeOf(page.Addr(c.Start), c.Length), Image: testBase, PageSize: page.Size}})
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, newSpace(se.pages, w.add(c.FD.Fd(), c.Pid, l), c.FD, c.FD, nil))
		children = append(children, c)
	}
	se.spaces.Store(&list)
	j, err := newJournal(w)
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	said := 0
	se.last = func() { said++ }
	se.released = func(*space, bool) {}
	r := &reader{worker: *se.newWorker("reader"), world: w, journal: j}
	defer r.close()
	if err := r.release(list[0], true); err != nil || said > 0 {
		t.Fatalf("%v; said %d times while others live", err, said)
	}
	children[1].Kill()
	until(t, "a process that was killed lives", func() bool { return hasEnded(children[1].FD) })
	if err := r.release(list[2], true); err != nil || said != 1 || !list[1].ended.Load() {
		t.Errorf("%v; said %d times, and that the other has ended is noted: %v", err, said, list[1].ended.Load())
	}
}
