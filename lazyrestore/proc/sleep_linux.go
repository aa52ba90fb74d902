package proc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A system call that sleeps for a time, and was interrupted, goes on by
// restart_syscall(2) until the moment that the kernel has noted: neither that
// moment nor, from the second time on, which call it is can be read anywhere.
// So the task is let go on with its sleep for a few microseconds, and looked at:
// where it sleeps, and for when it sets the timer, which the tracepoint
// timer:hrtimer_start says.

// A Sleep is what Resleep saw.
type Sleep struct {
	Where string // the function of the kernel that it slept in; empty: not to be had
	Until int64  // by the machine's clock, nanoseconds; 0: not to be had
	Over  bool   // it had slept enough: its system call has returned
}

// errAwake says that a task does not come to sleep.
var errAwake = errors.New("it does not sleep")

// Resleep looks at the sleep of a task that was stopped in it, with RAX saying
// that restart_syscall(2) knows what is left to do. It stands there again
// afterwards, or behind its system call where that was over.
func (t *Tracer) Resleep(tid int) (s Sleep, err error) {
	err = t.Do(func() error {
		k := t.tasks[tid]
		if k == nil || !k.stopped {
			return ErrNoProcess
		}
		timers, perr := t.listen(tid)
		if perr == nil {
			defer timers.close()
		}
		// A tick of the kernel's own may set a timer too, but not for the same
		// moment twice.
		seen := make(map[int64]bool)
		for range 8 {
			if s.Over, err = t.sleepOn(k, &s.Where); err != nil || s.Over || perr != nil {
				return err
			}
			for _, until := range timers.read() {
				if seen[until] && s.Where != "" {
					s.Until = until
					return nil
				}
				seen[until] = true
			}
		}
		return nil
	})
	if err != nil {
		err = fmt.Errorf("look at the sleep of task %d: %w", tid, err)
	}
	return s, err
}

// listen listens to the timers that a task sets. The first time takes
// milliseconds, and so does the end of the last that listens, for the kernel
// changes its code: so that one listens from the first time until Close, after
// the tasks were let go.
func (t *Tracer) listen(tid int) (*timerEvents, error) {
	if t.timers == nil {
		id, err := timerTracepoint()
		if err != nil {
			return nil, err
		}
		if t.timers, err = openTimers(id, t.tid); err != nil {
			t.timers = nil
			return nil, err
		}
	}
	return openTimers(t.timers.id, tid)
}

// sleepOn lets a task sleep on for a moment.
func (t *Tracer) sleepOn(k *task, where *string) (over bool, err error) {
	deadline := t.deadline()
	if over, err = t.goTo(k, unix.PTRACE_SYSCALL, StopSyscall, deadline); over || err != nil {
		return over, err
	}
	if err := t.resume(unix.PTRACE_SYSCALL, k.tid, 0); err != nil {
		return false, err
	}
	if err := t.untilAsleep(k, deadline); err != nil {
		return false, err
	}
	if !k.stopped && *where == "" {
		*where = sleepsIn(k.tid)
	}
	return t.endSleep(k, deadline)
}

// goTo lets a task go on until it stops for a reason. A signal ends its sleep: it
// is given to it, and the task stands before the first instruction of a handler.
func (t *Tracer) goTo(k *task, request int, want StopKind, deadline time.Time) (over bool, err error) {
	for {
		if err := t.resume(request, k.tid, 0); err != nil {
			return false, err
		}
		stop, err := t.wait(k.tid, deadline)
		switch {
		case err != nil:
			return false, err
		case stop.Kind == StopSignal:
			return true, t.give(k, deadline)
		case stop.Kind == want, stop.Kind == StopGroup && want == StopInterrupt:
			return false, nil
		}
	}
}

// give gives a task the signal for which it has stopped, and stops it again.
func (t *Tracer) give(k *task, deadline time.Time) error {
	sig := k.stop.Signal
	if err := t.poke(k); err != nil {
		return err
	}
	if err := t.Cont(k.tid, sig); err != nil {
		return err
	}
	return t.settle(k, deadline)
}

// sleepsIn is the function of the kernel that a task sleeps in. It is not told
// while the task is still on its way there.
func sleepsIn(tid int) string {
	for end := time.Now().Add(2 * time.Millisecond); time.Now().Before(end); {
		b, err := ReadFile(tid, "wchan")
		if err != nil {
			return ""
		}
		if where := strings.TrimSpace(string(b)); where != "0" && where != "" {
			return where
		}
	}
	return ""
}

// WaitsForPage reports whether a task waits, within a system call, for a page of a
// userfaultfd: it does not stop before that is there, or nobody holds the userfaultfd, and if it is interrupted it may
// wait without sleep from then on. False is no promise: the kernel may not tell.
func WaitsForPage(tid int) bool {
	where, err := ReadFile(tid, "wchan")
	if err != nil || strings.TrimSpace(string(where)) != "handle_userfault" {
		return false
	}
	// A task that is in no system call, but touches the page itself, shows -1.
	call, err := ReadFile(tid, "syscall")
	return err == nil && len(call) > 0 && call[0] >= '0' && call[0] <= '9'
}

// untilAsleep waits until a task that runs in a system call sleeps in it, or
// has returned from it and stopped.
func (t *Tracer) untilAsleep(k *task, deadline time.Time) error {
	for time.Now().Before(deadline) {
		if _, ok, err := t.poll(k.tid); ok || err != nil {
			return err
		}
		s, err := ReadStat(k.tid)
		if err != nil {
			return err
		}
		if s.State == 'S' {
			return nil
		}
	}
	return errAwake
}

// endSleep stops a task that sleeps in a system call, or has just stopped
// behind it, where the kernel still looks at its registers as those of a call
// that may have to go on; over says that it has not.
func (t *Tracer) endSleep(k *task, deadline time.Time) (over bool, err error) {
	if !k.stopped {
		if err := t.poke(k); err != nil {
			return false, err
		}
		if _, err := t.wait(k.tid, deadline); err != nil {
			return false, err
		}
	}
	if k.stop.Kind == StopSignal {
		return true, t.give(k, deadline)
	}
	var regs Regs
	if err := getRegs(k.tid, &regs); err != nil {
		return false, taskError("read the registers of", k.tid, err)
	}
	if err := t.poke(k); err != nil { // that stop has used up the first
		return false, err
	}
	signaled, err := t.goTo(k, unix.PTRACE_CONT, StopInterrupt, deadline)
	return signaled || -int64(regs[RAX]) != restartBlock, err
}

// EnterSleep has a stopped task make a system call that sleeps, with the
// SYSCALL instruction at insn, and stops it in its sleep. ret is the call's
// result where it did not sleep. Nothing is put back; see FinalSyscall.
func (t *Tracer) EnterSleep(tid int, insn uint64, nr uint64, args ...uint64) (slept bool, ret int64, err error) {
	err = t.Do(func() error {
		k := t.tasks[tid]
		if k == nil {
			return ErrNoProcess
		}
		var regs Regs
		if err := getRegs(tid, &regs); err != nil {
			return taskError("read the registers of", tid, err)
		}
		regs = regs.call(insn, nr, args)
		if err := setRegs(tid, &regs); err != nil {
			return taskError("set the registers of", tid, err)
		}
		deadline := t.deadline()
		if err := t.runTo(k, unix.PTRACE_SYSCALL, StopSyscall, deadline); err != nil {
			return err
		}
		if err := t.resume(unix.PTRACE_SYSCALL, tid, 0); err != nil {
			return err
		}
		if err := t.untilAsleep(k, deadline); err != nil {
			return err
		}
		over, err := t.endSleep(k, deadline)
		if err != nil {
			return err
		}
		slept = !over
		err = getRegs(tid, &regs)
		ret = int64(regs[RAX])
		return taskError("read the registers of", tid, err)
	})
	if err != nil {
		err = fmt.Errorf("run system call %d in task %d: %w", nr, tid, err)
	}
	return slept, ret, err
}

// Pass lets a task that stands behind a system call go on to the place where
// the kernel decides about restarting one, and stops it there.
func (t *Tracer) Pass(tid int) error {
	return t.Do(func() error {
		k := t.tasks[tid]
		if k == nil {
			return ErrNoProcess
		}
		if err := t.poke(k); err != nil {
			return err
		}
		return t.runTo(k, unix.PTRACE_CONT, StopInterrupt, t.deadline())
	})
}

// LetRun lets a stopped task run for a moment, and stops it again.
func (t *Tracer) LetRun(tid int) error {
	return t.Do(func() error {
		k := t.tasks[tid]
		if k == nil {
			return ErrNoProcess
		}
		if err := t.Cont(tid, 0); err != nil {
			return err
		}
		nap := unix.NsecToTimespec(int64(napMin))
		_ = unix.Nanosleep(&nap, nil)
		return t.haltAll(context.Background(), []*task{k})
	})
}
