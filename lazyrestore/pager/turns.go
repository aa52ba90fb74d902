package pager

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/thread"
)

// breath is how long the reader runs without letting Go run something else. Go
// takes its processor (the P) from who has run for 10 ms, and from who is in a
// system call then. A goroutine that has a thread
// to itself gets it back by way of two other threads, each of which has to be
// woken, and all the while a fault may wait. So the system calls by which the
// reader serves faults are made without a word to Go, and now and then it queues
// up by itself, where nobody else does.
const breath = int64(9 * time.Millisecond)

// retakeTime is how long a system call has to last for Go to have taken the P
// from it, mostly: as long as others are idle it leaves it for 10 ms, and does
// not count it as a turn of anybody else.
const retakeTime = int64(10 * time.Millisecond)

// turns see to it that the reader's thread runs when somebody waits for it, and
// others when they have something better to do. Their thread is locked.
type turns struct {
	unhurry  func() // ends that the thread goes first
	breathed int64  // when Go could last run something else
	owed     bool   // it is time to give the processor away
	looked   bool   // for the thread whose fault has been served last, which was not back in time
}

// begin has the calling thread go first, and sleep as shortly as it asks to; end ends it.
func (t *turns) begin() {
	ownSlack()
	t.unhurry = thread.Hurry()
}

func (t *turns) end() { t.unhurry() }

// served notes that a fault has been.
func (t *turns) served(now int64) {
	t.owed, t.looked = true, false
	t.breathe(now)
}

// give gives the processor away when a fault has been served, and then every other
// time. It reports whether it has, and is for when no fault is there but others are
// expected. A thread that is woken on the reader's own processor mostly runs at once,
// and raises its next fault before the reader has looked for one. Where it may not, by
// the scheduler's books, it waits until the reader sleeps: while that works ahead, a
// millisecond. It may be that the reader gets the processor back at once, whoever
// waits for it: so it is given away again before each piece of work.
func (t *turns) give() bool {
	give := t.owed
	if t.owed = !give; give {
		thread.Yield()
	}
	return give
}

// isWaitedFor reports whether the thread whose fault has been served waits for the reader's
// processor. It is looked for once, when it might be back: sched_yield is not heeded where the reader is ahead in the
// scheduler's books, by as much as 1.6 ms, and then only sleep is. So it is where the processor
// was another program's meanwhile, and no fault seems to come any more.
func (r *reader) isWaitedFor(now int64) bool {
	if r.turns.looked || r.pace.lull == 0 || now-r.pace.last < r.pace.lull || len(r.parked) > 0 || r.streaming.Load() {
		return false
	}
	r.turns.looked = true
	return r.follower.waitsHere()
}

// standBack sleeps until the next event, or until it is time to work ahead.
func (r *reader) standBack(now int64) {
	spaces := *r.spaces.Load()
	fds := r.standing[:0]
	for _, s := range spaces {
		if !s.crowded.Load() { // or there is something to be read all the time
			fds = append(fds, unix.PollFd{Fd: int32(s.u.Fd()), Events: unix.POLLIN})
		}
	}
	r.standing = fds
	pollFor(fds, time.Duration(min(r.pace.due-now, demandRecent)))
}

// slept notes for how long the thread was in a system call that Go was told of. Only
// where it lasted, and was not over at once, could Go run something else.
func (t *turns) slept(began, now int64) {
	if now-began >= retakeTime {
		t.breathed = now
	}
}

// breathe lets Go run something else, when it is time.
func (t *turns) breathe(now int64) {
	if now-t.breathed < breath {
		return
	}
	t.breathed = now
	tid := unix.Gettid()
	runtime.UnlockOSThread() // or it were the turn of another thread
	runtime.Gosched()
	runtime.LockOSThread()
	if unix.Gettid() != tid {
		t.unhurry() // it is another goroutine's
		t.begin()
	}
}
