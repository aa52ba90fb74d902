package native

import (
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// setRegisters gives every thread what only a tracer can give: the other
// threads are seized out of their sleep, all at once; the leader, which stands
// at the end of its table, unmaps the last of the restore from the process,
// through the vDSO's own system call instruction, before it gets its own.
func (b *builder) setRegisters(p *Process) error {
	return p.tracer.Do(func() error { return b.setAll(p.tracer) })
}

func (b *builder) setAll(tr *proc.Tracer) error {
	st := b.st
	if err := b.findThreads(); err != nil {
		return err
	}
	if err := tr.SeizeThreads(b.pid, b.tids[1:]); err != nil {
		return fmt.Errorf("seize the new threads: %w", err)
	}
	for i := range st.Threads[1:] {
		th := &st.Threads[i+1]
		regs := resume(th.Regs)
		if th.Sleep.Call != 0 {
			var err error
			if regs, err = b.asleep(tr, i+1); err != nil {
				return err
			}
		}
		if err := b.setThread(tr, b.tids[i+1], th, &regs); err != nil {
			return err
		}
	}
	return b.setLeader(tr)
}

func (b *builder) setLeader(tr *proc.Tracer) error {
	st := b.st
	leader := &st.Threads[0]
	if err := b.processor(tr, b.pid); err != nil {
		return err
	}
	if err := b.setDumpable(tr, b.pid); err != nil {
		return err
	}
	regs, err := b.leaderAsleep(tr)
	if err != nil {
		return err
	}
	if err := b.unmapProgram(tr, b.pid); err != nil {
		return err
	}
	if st.Session.Stopped {
		// While the leader still blocks all signals but this one.
		if err := tr.StopProcess(b.pid); err != nil {
			return fmt.Errorf("stop the process as it was: %w", err)
		}
	} else if regs != nil {
		if err := tr.Pass(b.pid); err != nil {
			return fmt.Errorf("bring the first thread to its sleep: %w", err)
		}
	}
	if regs == nil {
		again := resume(leader.Regs)
		regs = &again
	}
	return b.setThread(tr, b.pid, leader, regs)
}

// processor refuses a processor without a feature that the program may have
// found on the old one, whether a register of it is live now or not.
func (b *builder) processor(tr *proc.Tracer, tid int) error {
	state, err := tr.GetXState(tid)
	if err != nil {
		return err
	}
	lacks := b.st.XFeatures &^ xfeatures(state)
	if lacks == 0 {
		return nil
	}
	var r reasons
	r.add("the processor", fmt.Sprintf("it lacks extended registers that the program knows of (xsave features %#x)", lacks),
		"restore on a machine with the features that inspect shows")
	return r.err()
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

// unmapProgram has the leader unmap the mapping that holds its own code.
func (b *builder) unmapProgram(tr *proc.Tracer, tid int) error {
	insn, err := b.syscallInsn()
	if err != nil {
		return err
	}
	ret, err := tr.FinalSyscall(tid, insn, unix.SYS_MUNMAP, b.prog.base, uint64(len(b.prog.buf)))
	if errno, failed := proc.Errno(ret); err == nil && failed {
		err = errno
	}
	if err != nil {
		return fmt.Errorf("unmap the table: %w", err)
	}
	return nil
}

// Run lets the process go on where it was. The tracer lets go of it; nothing
// of the restore is left in it but its missing pages. Where that fails, Kill is
// still to be called.
func (p *Process) Run() error {
	if err := p.tracer.DetachAll(); err != nil {
		return fmt.Errorf("let process %d go: %w", p.PID, err)
	}
	p.close()
	return nil
}

// Kill ends a process that was not run, or whose Run failed, and gives up its
// descriptors.
func (p *Process) Kill() {
	p.tracer.KillAll()
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
