package pager

import (
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A thread that computes is found to be busy, one that sleeps is not, by either count.
func TestRunTime(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop)
	var stopped atomic.Int32
	defer stopped.Store(1)
	thread := func(f func()) string {
		tid := make(chan int)
		go func() {
			runtime.LockOSThread()
			tid <- unix.Gettid()
			f()
		}()
		return strconv.Itoa(<-tid)
	}
	busy := thread(func() {
		for stopped.Load() == 0 {
		}
	})
	idle := thread(func() { <-stop })
	for _, counts := range []bool{true, false} {
		t.Run("counts "+strconv.FormatBool(counts), func(t *testing.T) {
			times := map[string]*runTime{}
			for _, tid := range []string{busy, idle} {
				r, err := newRunTime("/proc/self/task/" + tid)
				if err != nil {
					t.Fatal(err)
				}
				defer r.close()
				if !counts {
					r.close()
					r.counter = -1
					if r.first, err = r.now(); err != nil {
						t.Fatal(err)
					}
					r.last = r.first
				}
				times[tid] = r
			}
			for is := false; !is; {
				var err error
				if is, err = times[busy].isBusy(); err != nil {
					t.Fatal(err)
				}
				if is, err := times[idle].isBusy(); is || err != nil {
					t.Fatalf("a sleeping thread is busy: %v, %v", is, err)
				}
			}
			if r := times[busy]; r.last-r.first <= busyTime {
				t.Errorf("it has run from %v to %v", r.first, r.last)
			}
		})
	}
}

// Looks wait for threads as long as they have not done so too much of late.
func TestPatience(t *testing.T) {
	now := time.Now()
	var p patience
	for left := p.left(now); left == lookTime; left = p.left(now) {
		p.spend(now, now.Add(lookTime))
		now = now.Add(lookTime)
		if p.spent > maxLooks {
			t.Fatalf("looks have waited for %v", p.spent)
		}
	}
	if left := p.left(now); left >= lookTime {
		t.Errorf("the next may wait for %v", left)
	}
	if left := p.left(now.Add(lookShare * maxLooks)); left != lookTime {
		t.Errorf("later it may wait for %v", left)
	}
}
