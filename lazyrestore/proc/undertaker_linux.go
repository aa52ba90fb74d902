package proc

import (
	"errors"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// An execve ends all other threads of its process, and waits until they have been
// buried: those that are traced, by their tracer. Meanwhile it holds a lock that a
// seizure of the thread itself, or of one that it has not ended yet, waits for. So
// who seizes thread after thread has those buried beside it that have died.

// undertakerRound is how often it is looked whether somebody has died. Most
// processes have been seized before the first time.
const undertakerRound = time.Millisecond

// An undertaker buries threads that are traced, beside the tracer's thread: the
// kernel lets any thread of a process wait for what another one traces. A process's
// first thread is not for it: it is there until all others have gone, and its end
// is for the parent to see.
type undertaker struct {
	mu    sync.Mutex // guards all; only calls that do not wait are made under it
	timer *time.Timer
	tids  []int
	done  bool
}

// hire starts an undertaker for tids, threads that are traced.
func hire(tids []int) *undertaker {
	u := &undertaker{tids: tids}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.timer = time.AfterFunc(undertakerRound, u.round)
	return u
}

func (u *undertaker) round() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.done {
		u.tids = slices.DeleteFunc(u.tids, reaped)
		u.timer.Reset(undertakerRound)
	}
}

// add has it look for one more.
func (u *undertaker) add(tid int) {
	u.mu.Lock()
	u.tids = append(u.tids, tid)
	u.mu.Unlock()
}

// dismiss ends it: no round is under way or comes any more.
func (u *undertaker) dismiss() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.done = true
	u.timer.Stop()
}

// reaped buries a traced task if it is dead, and reports whether there is nothing of
// it any more. Of one that is traced any wait tells of stops, too, and uses them up; so
// it is looked first.
func reaped(tid int) bool {
	const cldDumped = 3 // CLD_DUMPED: a code up to this is of an end
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, tid, &info, unix.WEXITED|unix.WNOHANG|unix.WALL|unix.WNOWAIT, nil)
	if err == nil && info.Signo != 0 && info.Code <= cldDumped {
		err = unix.Waitid(unix.P_PID, tid, nil, unix.WEXITED|unix.WNOHANG|unix.WALL, nil)
		return err == nil || errors.Is(err, unix.ECHILD)
	}
	return errors.Is(err, unix.ECHILD)
}

// awaitLeader waits until the first thread of a process has something to tell, where
// others of it are traced. If it has died it has not before they are buried, and whoever
// waits for it alone waits for ever.
func (t *Tracer) awaitLeader(tid int, soon bool) {
	for t.leadsTraced(tid) && nextChild(soon) != tid && !tells(tid) {
		t.reapOthers(tid)
		time.Sleep(napMin) // what else tells something may go on to
	}
}

// leadsTraced reports whether a task is the first thread of a process of which others
// are traced.
func (t *Tracer) leadsTraced(tid int) bool {
	if k := t.tasks[tid]; k == nil || k.pid != tid {
		return false
	}
	for other, o := range t.tasks {
		if o.pid == tid && other != tid {
			return true
		}
	}
	return false
}

// tells reports whether a wait for a task would return at once.
func tells(tid int) bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, tid, &info, unix.WEXITED|unix.WSTOPPED|unix.WNOHANG|unix.WALL|unix.WNOWAIT, nil)
	return err != nil || info.Signo != 0
}

// reapOthers buries the traced threads of the process of k that are dead, but for
// its first one and k itself.
func (t *Tracer) reapOthers(tid int) {
	k := t.tasks[tid]
	if k == nil {
		return
	}
	for other, o := range t.tasks {
		if o.seized && o.pid == k.pid && other != tid && other != o.pid && reaped(other) {
			delete(t.tasks, other)
		}
	}
}
