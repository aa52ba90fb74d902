package pager

import (
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/thread"
	"github.com/lazyrestore/lazyrestore/uffd"
)

// Whatever thread the reader finds itself on after it has let others run, that
// one is in a hurry, and none that it has left.
func TestTurns(t *testing.T) {
	var wg sync.WaitGroup
	stop := make(chan struct{})
	defer wg.Wait()
	defer close(stop)
	for range 4 * runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					runtime.Gosched()
				}
			}
		})
	}
	hurried := func(tid int) bool {
		attr, err := unix.SchedGetAttr(tid, 0)
		return err == nil && attr.Flags&unix.SCHED_FLAG_RESET_ON_FORK != 0
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var r turns
	moves := 0
	r.begin()
	for i := range 10000 {
		before := unix.Gettid()
		r.breathe(int64(i+1) * breath)
		if !hurried(0) {
			t.Fatalf("round %d: thread %d is not in a hurry", i, unix.Gettid())
		}
		if unix.Gettid() == before {
			continue
		}
		if hurried(before) {
			t.Fatalf("round %d: thread %d still is", i, before)
		}
		if moves++; moves == 10 {
			break
		}
	}
	r.end()
	if hurried(0) {
		t.Error("it still is in the end")
	}
	t.Log(moves, "moves")
}

// The processor is given away once for all faults that have been served, and
// again after each look that is not one.
func TestTurnsGive(t *testing.T) {
	var r turns
	r.breathed = breath
	if r.give() {
		t.Error("given away for nothing")
	}
	r.served(breath)
	r.served(breath)
	if !r.give() || r.give() {
		t.Error("not given away once")
	}
	if !r.give() || r.give() {
		t.Error("not given away again")
	}
}

// A long sleep lets Go run something else, a short one does not, nor a rest that is over at once.
func TestTurnsSlept(t *testing.T) {
	kick, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	se := &session{kickFD: kick, start: time.Now(), target: Target{PidFD: -1}}
	defer se.close()
	se.spaces.Store(new([]*space))
	r := &reader{worker: worker{session: se}}
	const never = -1
	short := func(parked int, before func()) {
		t.Helper()
		r.parked = make([]fault, parked) // then it is for a millisecond
		for try := 1; ; try++ {
			r.turns.breathed = never
			before()
			if err := r.rest(); err != nil {
				t.Fatal(err)
			}
			if r.turns.breathed == never {
				return
			}
			if try == 100 { // one may be held up by another program
				t.Fatalf("with %d parked it counts as a long sleep", parked)
			}
		}
	}
	short(0, se.nudge)
	short(1, func() {})
	r.parked = nil
	for try := 1; r.turns.breathed < retakeTime; try++ {
		if try > 100 { // one may be held up until the nudge
			t.Fatalf("there was nothing to do, and it breathed at %d", r.turns.breathed)
		}
		time.AfterFunc(time.Duration(2*retakeTime), se.nudge)
		if err := r.rest(); err != nil {
			t.Fatal(err)
		}
	}
}

// The reader stands back once for a fault, where the thread whose it was waits for its processor, and goes on
// with what is due, or with the next event.
func TestStandBack(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(2, runtime.GOMAXPROCS(0)))) // it computes while we look
	events, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	u := uffd.FromFD(events)
	defer u.Close()
	se := &session{start: time.Now().Add(-time.Second)}
	se.spaces.Store(&[]*space{{u: u}})
	r := &reader{worker: worker{session: se}}
	cpu := thread.Processor()
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil || !all.IsSet(cpu) {
		t.Fatal(err)
	}
	tid, end := runner(t, cpu)
	defer end()
	pinned(t, cpu, func() {
		r.follower = follower{s: &space{model: &model{pid: os.Getpid()}}, tid: uint32(tid)}
		defer r.follower.forget()
		r.follower.open(os.Getpid())
		r.pace.lull = lull
		r.lastFault.Store(r.now() + int64(time.Hour)) // they come
		fault := func() int64 {
			now := r.now()
			r.pace.served(now)
			r.turns.breathed = now // Go need not run others
			r.turns.served(now)
			return now
		}
		if now := fault(); r.isWaitedFor(now + lull - 1) {
			t.Error("looked for before it might be back")
		}
		if !eventually(true, func() bool { return r.isWaitedFor(fault() + lull) }) {
			t.Error("not waited for")
		}
		if r.isWaitedFor(r.pace.last + lull) {
			t.Error("looked for twice")
		}
		r.lastFault.Store(-demandRecent)
		if !eventually(true, func() bool { return r.isWaitedFor(fault() + lull) }) {
			t.Error("not waited for when faults seem to have ended")
		}
		r.pace.lull = 0
		if now := fault(); r.isWaitedFor(now + lull) {
			t.Error("it stands back where there is no time to wait for a fault")
		}
		// It may be held up, and a signal of Go's ends the sleep.
		short := func(due time.Duration) (n int) {
			for range 20 {
				now := r.now()
				r.pace.due = now + int64(due)
				if r.standBack(now); r.now()-now < int64(min(due, time.Millisecond)) {
					n++
				}
			}
			return n
		}
		for _, due := range []time.Duration{500 * time.Microsecond, time.Hour} {
			if n := short(due); n > 10 {
				t.Errorf("%d times of 20 it goes on before anything is due", n)
			}
		}
		if _, err := unix.Write(events, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
			t.Error(err)
		}
		if n := short(time.Hour); n < 10 {
			t.Errorf("%d times of 20 it sleeps though there is an event", 20-n)
		}
	})
}
