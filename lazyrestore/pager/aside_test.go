package pager

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/thread"
	"github.com/lazyrestore/lazyrestore/uffd"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// A worker that has stepped aside for faults waits until another is told that there are none.
func TestStepAside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		se := &session{calm: make(chan struct{}, 2)}
		se.rouse() // nobody has
		var aside atomic.Int32
		for range 2 {
			aside.Add(1)
			go func() {
				se.stepAside(t.Context())
				aside.Add(-1)
			}()
		}
		if synctest.Wait(); aside.Load() != 2 {
			t.Fatalf("%d of two wait", aside.Load())
		}
		se.rouse()
		if synctest.Wait(); aside.Load() != 0 {
			t.Fatalf("%d still wait", aside.Load())
		}
		se.exhausted.Store(true)
		se.stepAside(t.Context()) // the other has nothing to do, and has said so before
	})
}

// What was meant for who stepped aside before does not have a worker go on while faults come.
func TestStepAsideDespiteWhatIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		se := &session{calm: make(chan struct{}, 2), start: time.Now()}
		se.calm <- struct{}{}
		se.lastFault.Store(se.now())
		over := false
		go func() {
			se.stepAside(t.Context())
			over = true
		}()
		if synctest.Wait(); over || len(se.calm) > 0 {
			t.Fatalf("it goes on: %v; it leaves %d tokens", over, len(se.calm))
		}
		time.Sleep(time.Duration(demandRecent))
		se.rouse()
		if synctest.Wait(); !over {
			t.Fatal("it waits though none come")
		}
	})
}

// While faults come a worker runs only where nobody else wants to, whatever it has done before; but never in the
// gate: everybody would wait for it.
func TestNobodyIdlesInTheGate(t *testing.T) {
	uffdtest.Need(t, "root") // back from the idle policy
	var reading, inside policies
	var r *remote
	se := fakeSession(t, 16, remoteOf(&r, func(context.Context, image.Lane) error { return reading.note() }))
	s := fakeSpace(t, se, &fakeMemory{
		vmas: []page.Range{page.RangeOf(testBase, 16*page.Size)}, pages: map[page.Addr]byte{}, refuse: inside.note,
	})
	se.lastFault.Store(int64(time.Hour)) // they come all the time
	se.offers = make(chan *offer, offersEach)
	var wg sync.WaitGroup
	wg.Go(func() {
		runtime.LockOSThread() // it is not given back: its priority would stay
		w := &filler{worker: *se.newWorker("background"), behind: thread.FallBehind()}
		defer w.close()
		w.fillSlowly(t.Context(), 0, 2)
		for i := range w.slots {
			o := &w.slots[i]
			o.frames, o.by, o.first, o.n = w.newFrames(), w, 2, 1
			o.plain, o.out = make([]byte, 4*page.Size), true // and comes back as it is
			o.done.Store(true)
			defer o.frames.Close()
		}
		w.fillSpan(t.Context(), 3, 1)
	})
	wg.Wait()
	if len(se.offers) != 1 || s.left.Load() != 4 {
		t.Errorf("%d spans are offered, %d pages are missing", len(se.offers), s.left.Load())
	}
	if want := (policies{unix.SCHED_IDLE, unix.SCHED_IDLE, unix.SCHED_IDLE}); !slices.Equal(reading, want) {
		t.Errorf("it has read by the policies %v", reading)
	}
	if len(inside) != 12 || slices.Contains(inside, unix.SCHED_IDLE) {
		t.Errorf("pages have come by threads of the policies %v", inside)
	}
}

// policies are those by which the kernel's scheduler treated threads.
type policies []uint32

// note adds that of the calling thread.
func (p *policies) note() error {
	attr, err := unix.SchedGetAttr(0, 0)
	if err == nil {
		*p = append(*p, attr.Policy)
	}
	return err
}

// A sleeping reader, which alone may notice that the faults have ended, is told of who steps aside.
func TestStepAsideTellsReader(t *testing.T) {
	se := fakeSession(t, 4, plainSource)
	se.calm = make(chan struct{}, 1)
	se.resting.Store(true)
	go se.stepAside(t.Context())
	if !uffdtest.Readable(se.kickFD, uffdtest.Timeout) {
		t.Error("it sleeps on")
	}
}

// A source that gives one worker nothing holds up that worker alone: when the faults have
// ended, the one that has stepped aside for them does all the rest.
func TestAsideWhileOtherIsHeldUp(t *testing.T) {
	var src *remote
	held, release := make(chan struct{}), make(chan struct{})
	var reads atomic.Int32
	se := fakeSession(t, 512, remoteOf(&src, func(context.Context, image.Lane) error {
		if reads.Add(1) == 1 {
			close(held)
			<-release
		}
		return nil
	}))
	se.target.PidFD = -1
	se.calm, se.more, se.offers = make(chan struct{}, 2), make(chan struct{}, 2), make(chan *offer, 2*offersEach)
	s := fakeSpace(t, se, &fakeMemory{
		vmas: []page.Range{page.RangeOf(testBase, 512*page.Size)}, pages: map[page.Addr]byte{}, refuse: func() error { return nil },
	})
	quiet, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC) // of which no events come
	if err != nil {
		t.Fatal(err)
	}
	s.u = uffd.FromFD(quiet)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer func() {
		cancel()
		wg.Wait()
		_ = s.u.Close()
	}()
	free := sync.OnceFunc(func() { close(release) })
	defer free()

	se.lastFault.Store(int64(time.Hour)) // they do not cease
	wg.Go(func() { se.fill(ctx, 0) })
	<-held
	wg.Go(func() { se.fill(ctx, runtime.NumCPU()) })
	until(t, "nobody steps aside", func() bool { return se.aside.Load() == 1 })
	wg.Go(func() {
		r := &reader{worker: *se.newWorker("reader")}
		defer r.close()
		for ctx.Err() == nil && r.rest() == nil {
		}
	})
	se.lastFault.Store(-demandRecent)
	until(t, "who has stepped aside does nothing", func() bool { return s.left.Load() == smallSpan>>page.Shift })
	free()
	until(t, "who was held up does not end what it has begun", func() bool { return s.left.Load() == 0 })
}

// until waits for what no event tells.
func until(t *testing.T, otherwise string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(uffdtest.Timeout); !is(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal(otherwise)
		}
	}
}
