package pager

import (
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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

// A sleep lets Go run something else, a rest that is over at once does not.
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
	for try := 1; ; try++ {
		r.turns.breathed = never
		se.nudge()
		if err := r.rest(); err != nil {
			t.Fatal(err)
		}
		if r.turns.breathed == never {
			break
		}
		if try == 100 { // one may be held up by another program
			t.Fatal("it counts as a sleep where there was something to do")
		}
	}
	r.parked = make([]fault, 1) // for a millisecond
	if err := r.rest(); err != nil || r.turns.breathed < int64(time.Millisecond) {
		t.Errorf("there was nothing to do: %v, breathed at %d", err, r.turns.breathed)
	}
}
