package native

import (
	"fmt"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// Signals that are pending are queued by the process itself, and by each thread for
// itself: others may not say who sent them. The stop at the end of the first thread's
// table takes away each SIGCONT that is pending anywhere. So those come behind it, by
// calls that are led through a thread when it stands still.

// A lateSignal is such a call.
type lateSignal struct {
	of   *Thread
	nr   uint64
	args []uint64
}

// queue plans that a thread queues signals: its own, or the process's, by a call that
// takes ids, the signal and its siginfo.
func (b *builder) queue(t *table, th *Thread, infos [][]byte, call uintptr, ids ...uint64) {
	for _, info := range infos {
		sig := signalOf(info)
		args := append(slices.Clip(ids), uint64(sig), b.prog.bytes(info))
		if unix.Signal(sig) == unix.SIGCONT {
			b.lateSignals = append(b.lateSignals, lateSignal{th, uint64(call), args})
			continue
		}
		t.call("queue signal", call, args...).on(strconv.Itoa(sig))
	}
}

// hasLate reports whether a thread has signals that are queued late.
func (b *builder) hasLate(th *Thread) bool {
	return slices.ContainsFunc(b.lateSignals, func(s lateSignal) bool { return s.of == th })
}

// queueLate queues them in a thread that stands still, before it is given its
// registers. A process that is stopped has none: it would go on.
func (b *builder) queueLate(tr *proc.Tracer, tid int, th *Thread) error {
	if !b.hasLate(th) || b.st.Session.Stopped {
		return nil
	}
	insn, err := b.syscallInsn()
	if err != nil {
		return err
	}
	for _, s := range b.lateSignals {
		if s.of != th {
			continue
		}
		// With its registers put back: they tell how its sleep was interrupted.
		ret, err := tr.StepSyscall(tid, insn, s.nr, s.args...)
		if errno, failed := proc.Errno(ret); err == nil && failed {
			err = errno
		}
		if err != nil {
			return fmt.Errorf("thread %d: queue SIGCONT: %w", th.TID, err)
		}
	}
	return nil
}
