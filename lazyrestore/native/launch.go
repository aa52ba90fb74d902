package native

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
	"github.com/lazyrestore/lazyrestore/lazyrestore/thread"
)

// setRegisters gives threads what only a tracer can give: those of the others
// for which the first waits are seized out of their sleep, all at once; the
// leader, which stands at the end of its table, gets its own last. Who is last of
// all, it or one of those that come later, unmaps the last of the restore from
// the process, through the vDSO's own system call instruction. What does not come to
// its stops in time is killed, which ends every wait for it.
func (b *builder) setRegisters(ctx context.Context, p *Process) error {
	return p.within(ctx, stopTime, func() error {
		return p.tracer.Do(func() error { return b.setAll(p) })
	})
}

// stopTime is how long the threads of a process have to be given their registers.
const stopTime = 10 * time.Second

// within calls f, which waits for stops of the process and returns at the latest when
// that has ended. It is killed at the limit, and with ctx.
func (p *Process) within(ctx context.Context, limit time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errNoStop)
	defer cancel()
	stop := p.endWith(ctx)
	err := f()
	stop()
	return cmp.Or(context.Cause(ctx), err)
}

// errNoStop is why a process was killed that was built.
var errNoStop = errors.New("the new process's threads did not stop in time")

func (b *builder) setAll(p *Process) error {
	st, tr := b.st, p.tracer
	if err := b.findThreads(); err != nil {
		return err
	}
	own, err := b.processor(tr, b.pid)
	if err != nil {
		return err
	}
	first, rest := b.partThreads(own)
	if err := tr.SeizeThreads(b.pid, b.tidsOf(first)); err != nil {
		return fmt.Errorf("seize the new threads: %w", err)
	}
	for _, i := range first {
		th := &st.Threads[i]
		if err := b.queueLate(tr, b.tids[i], th); err != nil {
			return err
		}
		regs := resume(th.Regs)
		if th.Sleep.Call != 0 {
			var err error
			if regs, err = b.asleep(tr, i); err != nil {
				return err
			}
		}
		if err := b.setThread(tr, b.tids[i], th, &regs); err != nil {
			return err
		}
	}
	if len(rest) > 0 {
		p.later = &later{b, rest}
		if err := p.later.hold(tr); err != nil {
			return err
		}
	}
	return b.setLeader(p)
}

func (b *builder) setLeader(p *Process) error {
	st, tr := b.st, p.tracer
	leader := &st.Threads[0]
	if err := b.setDumpable(tr, b.pid); err != nil {
		return err
	}
	if err := b.queueLate(tr, b.pid, leader); err != nil {
		return err
	}
	regs, err := b.leaderAsleep(tr)
	if err != nil {
		return err
	}
	switch {
	case p.later != nil: // the last of them unmaps the program
		err = tr.Withhold(b.pid)
	default:
		err = b.leaveAndPass(tr, regs != nil)
	}
	if err != nil {
		return err
	}
	if regs == nil {
		again := resume(leader.Regs)
		regs = &again
	}
	return b.setThread(tr, b.pid, leader, regs)
}

// leaveAndPass has the leader unmap the program, and brings it to its stop or, where
// it is asleep, back to its sleep.
func (b *builder) leaveAndPass(tr *proc.Tracer, asleep bool) error {
	if err := b.leaveProgram(tr, b.pid); err != nil {
		return err
	}
	if b.st.Session.Stopped {
		// While the leader still blocks all signals but this one.
		if err := tr.StopProcess(b.pid); err != nil {
			return fmt.Errorf("stop the process as it was: %w", err)
		}
	} else if asleep {
		if err := tr.Pass(b.pid); err != nil {
			return fmt.Errorf("bring the first thread to its sleep: %w", err)
		}
	}
	return nil
}

// processor refuses a processor without a feature that the program may have
// found on the old one, whether a register of it is live now or not. It gives
// the extended registers that a process has here.
func (b *builder) processor(tr *proc.Tracer, tid int) (own []byte, err error) {
	if own, err = tr.GetXState(tid); err != nil {
		return nil, err
	}
	lacks := b.st.XFeatures &^ xfeatures(own)
	if lacks == 0 {
		return own, nil
	}
	var r reasons
	r.add("the processor", fmt.Sprintf("it lacks extended registers that the program knows of (xsave features %#x)", lacks),
		"restore on a machine with the features that inspect shows")
	return nil, r.err()
}

func (b *builder) setThread(tr *proc.Tracer, tid int, th *Thread, regs *proc.Regs) error {
	if th.RSeq.CS != 0 {
		// Running outside of the critical section has cleared the pointer.
		if err := tr.PokeWord(tid, th.RSeq.Addr+rseqCSOffset, th.RSeq.CS); err != nil {
			return fmt.Errorf("thread %d: put its critical section back: %w", th.TID, err)
		}
	}
	if err := tr.SetXState(tid, th.XState); err != nil {
		if errors.Is(err, unix.EINVAL) {
			var r reasons
			r.add("the extended registers of thread "+strconv.Itoa(th.TID), "this processor does not have all of them", "restore on a machine with the processor features that inspect shows")
			return r.err()
		}
		return fmt.Errorf("thread %d: set the extended registers: %w", th.TID, err)
	}
	if err := tr.SetRegs(tid, regs); err != nil {
		return fmt.Errorf("thread %d: set the registers: %w", th.TID, err)
	}
	if err := tr.SetSigMask(tid, th.SigMask); err != nil {
		return fmt.Errorf("thread %d: set the signal mask: %w", th.TID, err)
	}
	return nil
}

// leaveProgram has a thread unmap the program, from outside of it.
func (b *builder) leaveProgram(tr *proc.Tracer, tid int) error {
	insn, err := b.syscallInsn()
	if err != nil {
		return err
	}
	r := b.prog.mapped()
	ret, err := tr.FinalSyscall(tid, insn, unix.SYS_MUNMAP, uint64(r.Start), r.Len())
	if errno, failed := proc.Errno(ret); err == nil && failed {
		err = errno
	}
	if err != nil {
		return fmt.Errorf("unmap the table: %w", err)
	}
	return nil
}

// Run lets the process go on where it was, and calls running once its first
// thread does. When it returns, the tracer has let go of all threads; nothing of
// the restore is left in the process but its missing pages. Where that fails, Kill
// is still to be called.
func (p *Process) Run(running func()) error {
	err := p.tracer.Detach(p.PID)
	if err == nil {
		running()
		err = p.tracer.DetachStopped()
	}
	if err == nil && p.later != nil {
		err = p.later.set(p.tracer)
		*p.later = later{} // which copies of p keep
	}
	if err != nil {
		return fmt.Errorf("let process %d go: %w", p.PID, err)
	}
	return nil
}

// Release gives back what the rebuild took here, once Run has let the process
// go. It is called by the goroutine that called Run. The process goes first: it
// was woken on this processor, and the other one may be the pager's.
func (p *Process) Release() {
	thread.Yield()
	p.close()
}

// Kill ends a process that was not run, or whose Run failed, and gives up its
// descriptors.
func (p *Process) Kill() {
	p.tracer.KillAll()
	_ = p.wait()
	if p.abandon != nil {
		p.abandon()
	}
	p.close()
	if p.Space != nil {
		p.Space.End()
		p.Space = nil
	}
	removeAll(p.made)
	if p.UFFD != nil {
		p.UFFD.Close()
		p.UFFD = nil
	}
	if p.PIDFD >= 0 {
		unix.Close(p.PIDFD)
		p.PIDFD = -1
	}
}

// close gives back what the rebuild took here.
func (p *Process) close() {
	p.tracer.Close()
	if p.record != nil {
		p.record()
		p.record = nil
	}
	_ = unix.Munmap(p.program)
}

// explain turns a step that failed into a refusal where the cause lies in this
// place, not in us.
func (b *builder) explain(err error) error {
	var step *StepError
	if !errors.As(err, &step) {
		return err
	}
	var r reasons
	switch {
	case errors.Is(err, unix.EEXIST) && step.Call == unix.SYS_CLONE3:
		r.add(step.Step, "another thread or process has the id", "wait until that process has ended, or end it")
	case step.Call == unix.SYS_OPENAT:
		r.add(step.Step, step.Errno.Error(), "put the file back, or make it readable")
	case errors.Is(err, unix.EAGAIN) && (step.Call == unix.SYS_FCNTL || step.Call == unix.SYS_FLOCK):
		r.add(step.Step, "somebody else has it locked or open", "end whoever has")
	case step.Call == unix.SYS_CHDIR:
		r.add(step.Step, step.Errno.Error(), "make the directory again")
	default:
		return err
	}
	return r.err()
}
