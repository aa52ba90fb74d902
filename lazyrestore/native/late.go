package native

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// To stop a thread, give it its registers and let it go takes some twenty
// microseconds, and all that may fail of making it has been seen by then. So the
// first thread does not wait for it: the others sleep at the end of their
// tables, as threads may that the scheduler has not come to, and get their
// registers once the first runs. What is sent to them meanwhile waits: they block
// all signals. Until then the program stays mapped, with their code in it, and
// they are traced, so that the process ends with us: none ever runs with other
// registers than its own.
//
// Threads whose registers the kernel might not take, or that have to be led into
// a sleep, are not among them: all of those are set before the first runs. Nor is
// anyone where they are few: then none waits behind the pager, which has the first
// thread's first fault to serve by then.

// later are the threads of a process that are given their registers once its
// first thread runs.
type later struct {
	b       *builder
	threads []int // of b.st.Threads, all of them held
}

// together is how many of the threads are stopped at once: enough that their
// stops are not waited for one by one, and so few that they do not keep the
// processors from those that run.
const together = 16

// fewThreads is how many do not hold up the first thread for long.
const fewThreads = 4

// partThreads parts the threads other than the first into those that are given
// their registers before that runs, and those for which it does not wait; own is
// the extended state that this machine gives a process.
func (b *builder) partThreads(own []byte) (first, rest []int) {
	for i := 1; i < len(b.st.Threads); i++ {
		th := &b.st.Threads[i]
		if !b.st.Session.Stopped && th.Sleep.Call == 0 && th.RSeq.CS == 0 && !b.hasLate(th) && takes(th, own) {
			rest = append(rest, i)
		} else {
			first = append(first, i)
		}
	}
	if len(rest) <= fewThreads {
		return append(first, rest...), nil
	}
	return first, rest
}

// hold ends the process with us from now on, whatever becomes of its first thread.
func (l *later) hold(tr *proc.Tracer) error {
	if err := tr.Hold(l.b.pid, l.b.tidsOf(l.threads)); err != nil {
		return fmt.Errorf("hold the threads: %w", err)
	}
	return nil
}

// set gives the threads their registers and lets each go, while the first
// thread of their process runs. That may end them all at any time, by its end or
// by an execve, which is no error; they are buried then, for which both wait.
func (l *later) set(tr *proc.Tracer) error {
	defer l.b.trace.Begin(0, "let the other threads go")()
	err := tr.Do(func() error {
		for some := range slices.Chunk(l.threads, together) {
			if err := l.setSome(tr, some); err != nil {
				return err
			}
		}
		return nil
	})
	var exit *proc.ExitError
	if errors.Is(err, proc.ErrNoProcess) || errors.As(err, &exit) {
		return tr.BuryAll()
	}
	return err
}

func (l *later) setSome(tr *proc.Tracer, some []int) error {
	b := l.b
	if err := tr.HaltHeld(b.tidsOf(some)); err != nil {
		return err
	}
	for _, i := range some {
		if i == l.threads[len(l.threads)-1] {
			if err := b.leaveProgram(tr, b.tids[i]); err != nil {
				return err
			}
		}
		th := &b.st.Threads[i]
		regs := resume(th.Regs)
		if err := b.setThread(tr, b.tids[i], th, &regs); err != nil {
			return err
		}
		if err := tr.Detach(b.tids[i]); err != nil {
			return err
		}
	}
	return nil
}

// takes reports whether the kernel is sure to take a thread's registers: it
// refuses some, and who finds that out late has a process that runs without
// them.
func takes(th *Thread, own []byte) bool {
	const (
		mxcsr, mxcsrMask = 24, 28 // in XSAVE's legacy area
		header, reserved = 512, 8 // the header: features, then what has to be zero
		headerEnd        = header + 64
		userCS, userSS   = 0x33, 0x2b
	)
	x, r := th.XState, &th.Regs
	if len(x) != len(own) || len(x) < headerEnd {
		return false
	}
	word := binary.NativeEndian.Uint32
	used := binary.NativeEndian.Uint64(x[header:])
	return used&^xfeatures(own) == 0 && used&onRequest == 0 && allZero(x[header+reserved:headerEnd]) &&
		word(x[mxcsr:])&^word(own[mxcsrMask:]) == 0 &&
		r[proc.CS] == userCS && r[proc.SS] == userSS &&
		r[proc.DS]|r[proc.ES]|r[proc.FS]|r[proc.GS] == 0 &&
		r[proc.FSBase] < taskSize && r[proc.GSBase] < taskSize
}

// tidsOf are the ids, as we see them, of threads of the state.
func (b *builder) tidsOf(threads []int) []int {
	tids := make([]int, 0, len(threads))
	for _, i := range threads {
		tids = append(tids, b.tids[i])
	}
	return tids
}
