package proc

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// GroupStopped reports whether a signal has stopped a whole process all of
// whose threads are traced and stopped: SIGSTOP, or one of a terminal's, before
// they were seized or while they were made to run something. It is not if SIGCONT
// has come since. On an error, as where the first thread does not stop again, nobody knows, and that thread may run.
func (t *Tracer) GroupStopped(pid int) (stopped bool, err error) {
	err = t.Do(func() error {
		k := t.tasks[pid]
		if k == nil || !k.stopped || !t.halted(pid) {
			return nil
		}
		// Nobody is told that a SIGCONT has come, which may be pending, or another thread
		// has got it, seized or not. But each stop says how things stand by then.
		if err := t.poke(k); err != nil {
			return err
		}
		if err := t.Cont(pid, 0); err != nil {
			return err
		}
		err := t.settle(k, t.deadline())
		stopped = err == nil && k.stop.Kind == StopGroup
		return err
	})
	return stopped, err
}

// halted reports whether a thread of a process has been seen in a stop of the whole process.
func (t *Tracer) halted(pid int) bool {
	for _, k := range t.tasks {
		if k.pid == pid && k.halted {
			return true
		}
	}
	return false
}

// StopProcess stops a process as SIGSTOP does, by way of its first thread, which
// is traced and stands still, as all others do. When they are let go they stay
// stopped, without having run an instruction. Signals that the first thread
// does not block must not wait for it.
func (t *Tracer) StopProcess(pid int) error {
	return t.Do(func() error {
		k := t.tasks[pid]
		if k == nil {
			return ErrNoProcess
		}
		if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
			return taskError("stop", pid, err)
		}
		sig := unix.Signal(0)
		for deadline := t.deadline(); ; {
			if err := t.Cont(pid, sig); err != nil {
				return err
			}
			stop, err := t.wait(pid, deadline)
			if err != nil {
				return err
			}
			switch {
			case stop.Kind == StopGroup:
				return nil
			case stop.Kind == StopSignal && stop.Signal == unix.SIGSTOP:
				sig = stop.Signal
			default:
				return fmt.Errorf("stop task %d: it stopped with %v", pid, stop.Signal)
			}
		}
	})
}
