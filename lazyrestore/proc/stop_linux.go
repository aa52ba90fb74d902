package proc

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// StopKind says why a traced task stopped.
type StopKind uint8

// Kinds of stop; see ptrace(2).
const (
	StopSignal    StopKind = iota + 1 // it is about to get Signal
	StopGroup                         // the whole process is stopped by Signal
	StopInterrupt                     // the tracer interrupted it, or it was just born
	StopSyscall                       // before or after a system call
	StopEvent                         // a PTRACE_EVENT_, in Event
)

// A Stop is what a task reported.
type Stop struct {
	Kind   StopKind
	Signal unix.Signal
	Event  int
}

// ExitError says that a task ended, or its process did, instead of stopping.
type ExitError struct {
	TID    int
	Status unix.WaitStatus
}

func (e *ExitError) Error() string {
	switch {
	case e.Status.Signaled():
		return fmt.Sprintf("task %d was ended by %v", e.TID, e.Status.Signal())
	case e.Status.Exited():
		return fmt.Sprintf("task %d ended with status %d", e.TID, e.Status.ExitStatus())
	}
	return fmt.Sprintf("task %d has ended", e.TID)
}

// StuckError says that a task did not stop in time: it waits in the kernel
// where no signal reaches it.
type StuckError struct {
	TID   int
	State byte // as in Status
}

func (e *StuckError) Error() string {
	return fmt.Sprintf("task %d does not stop (state %c)", e.TID, e.State)
}

// decode tells the stop from a status that wait4 gave. Tasks have
// PTRACE_O_TRACESYSGOOD set.
func decode(st unix.WaitStatus) Stop {
	sig, event := st.StopSignal(), int(st)>>16
	switch {
	case event == unix.PTRACE_EVENT_STOP && sig == unix.SIGTRAP:
		return Stop{Kind: StopInterrupt}
	case event == unix.PTRACE_EVENT_STOP:
		return Stop{Kind: StopGroup, Signal: sig}
	case event != 0:
		return Stop{Kind: StopEvent, Event: event}
	case sig == unix.SIGTRAP|0x80:
		return Stop{Kind: StopSyscall}
	}
	return Stop{Kind: StopSignal, Signal: sig}
}

// Waiting for a stop: at first without sleep, since the tasks that we wait for
// run a few system calls only; then ever longer.
const (
	spinWait = 200 * time.Microsecond
	napMin   = 20 * time.Microsecond
	napMax   = time.Millisecond
	patience = 10 * time.Second // for a task to stop
)

// wait waits for the next stop of a task, until the deadline. It runs on the
// tracer's thread. Errors: *ExitError, *StuckError.
func (t *Tracer) wait(tid int, deadline time.Time) (Stop, error) {
	nap := napMin
	start := time.Now()
	for {
		stop, ok, err := t.poll(tid)
		if ok || err != nil {
			return stop, err
		}
		now := time.Now()
		switch {
		case now.After(deadline):
			s, err := ReadStatus(tid)
			if err != nil {
				return Stop{}, err
			}
			return Stop{}, &StuckError{tid, s.State}
		case now.Sub(start) < spinWait:
			_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		default:
			ts := unix.NsecToTimespec(int64(nap))
			_ = unix.Nanosleep(&ts, nil)
			if nap == napMax {
				t.reapOthers(tid) // for whom an execve of this one may wait
			}
			nap = min(2*nap, napMax)
		}
	}
}

// poll looks whether a task has stopped.
func (t *Tracer) poll(tid int) (stop Stop, ok bool, err error) {
	return t.waitFor(tid, unix.WNOHANG, wait4)
}

// waitSoon waits for a task that is about to stop, see wait4.
func (t *Tracer) waitSoon(tid int) (stop Stop, ok bool, err error) {
	t.awaitLeader(tid, true)
	return t.waitFor(tid, 0, wait4)
}

// wait4 waits for a task, for as long as it takes.
func (t *Tracer) wait4(tid int) (stop Stop, ok bool, err error) {
	t.awaitLeader(tid, false)
	return t.waitFor(tid, 0, func(tid int, st *unix.WaitStatus, flags int) (int, error) {
		return unix.Wait4(tid, st, flags, nil)
	})
}

// waitFor waits for a task, and keeps account of what it tells.
func (t *Tracer) waitFor(tid, flags int, wait func(int, *unix.WaitStatus, int) (int, error)) (stop Stop, ok bool, err error) {
	var st unix.WaitStatus
	for {
		n, err := wait(tid, &st, flags|unix.WALL)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ECHILD):
			// Another thread's execve took it away.
			delete(t.tasks, tid)
			if tid == t.child {
				t.child = 0
			}
			return stop, false, &ExitError{TID: tid, Status: unix.WaitStatus(0x7f)}
		case err != nil:
			return stop, false, fmt.Errorf("wait for task %d: %w", tid, err)
		case n == 0:
			return stop, false, nil
		}
		break
	}
	if !st.Stopped() {
		delete(t.tasks, tid)
		if tid == t.child {
			t.child = 0 // from now on its id may be anybody's
		}
		return stop, false, &ExitError{TID: tid, Status: st}
	}
	stop = decode(st)
	if k := t.tasks[tid]; k != nil {
		k.stopped, k.stuck, k.stop = true, false, stop
		k.halted = k.halted || stop.Kind == StopGroup
	}
	return stop, true, nil
}
