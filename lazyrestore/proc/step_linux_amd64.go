package proc

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// ErrNoVDSO says that a process has no vDSO, where system calls could be made.
var ErrNoVDSO = errors.New("the process has no vDSO")

// FindSyscall gives the offset of a SYSCALL instruction in code, or -1.
func FindSyscall(code []byte) int { return bytes.Index(code, syscallInsn) }

// SyscallInsn finds the address of a SYSCALL instruction in the vDSO of a
// process; vmas are its mappings.
func SyscallInsn(pid int, vmas []VMA) (uint64, error) {
	vdso, err := findVDSO(vmas)
	if err != nil {
		return 0, err
	}
	text := make([]byte, vdso.Len())
	if _, err := ReadMemory(pid, uint64(vdso.Start), text); err != nil {
		return 0, err
	}
	if at := FindSyscall(text); at >= 0 {
		return uint64(vdso.Start) + uint64(at), nil
	}
	return 0, ErrNoVDSO
}

func findVDSO(vmas []VMA) (page.Range, error) {
	for i := range vmas {
		if vmas[i].Kind == VMAVDSO {
			return vmas[i].Range, nil
		}
	}
	return page.Range{}, ErrNoVDSO
}

// StepSyscall has a stopped task make one system call, with the SYSCALL
// instruction at insn, and stop again. Its registers and signal mask are put
// back, and all signals are blocked meanwhile. ret is the call's result; see
// Errno. If our process dies in the middle, a task that was seized is lost: it
// goes on with the registers of the call; an Injector has no such window.
func (t *Tracer) StepSyscall(tid int, insn uint64, nr uint64, args ...uint64) (ret int64, err error) {
	err = t.Do(func() error {
		ret, err = t.stepSyscall(tid, insn, nr, args)
		if err != nil {
			return fmt.Errorf("run system call %d in task %d: %w", nr, tid, err)
		}
		return nil
	})
	return ret, err
}

func (t *Tracer) stepSyscall(tid int, insn uint64, nr uint64, args []uint64) (int64, error) {
	k := t.tasks[tid]
	if k == nil {
		return 0, ErrNoProcess
	}
	saved, err := t.context(k)
	if err != nil {
		return 0, err
	}
	mask, err := getSigMask(tid)
	if err != nil {
		return 0, taskError("read the signal mask of", tid, err)
	}
	regs := saved.call(insn, nr, args)
	return t.divert(k, &regs, mask, &saved)
}

// roundTrip lets a task enter and leave one system call, and stop again before
// it runs anything else, where the kernel still looks at its registers as
// those of a call that may have to be restarted.
func (t *Tracer) roundTrip(k *task) (int64, error) {
	deadline := t.deadline()
	for range 2 {
		if err := t.runTo(k, unix.PTRACE_SYSCALL, StopSyscall, deadline); err != nil {
			return 0, err
		}
	}
	var regs Regs
	if err := getRegs(k.tid, &regs); err != nil {
		return 0, taskError("read the registers of", k.tid, err)
	}
	want := StopInterrupt
	if !k.seized {
		want = StopSignal
	}
	if err := t.poke(k); err != nil {
		return 0, err
	}
	if err := t.runTo(k, unix.PTRACE_CONT, want, deadline); err != nil {
		return 0, err
	}
	k.ours = !k.seized
	return int64(regs[RAX]), nil
}

// runTo lets a task go on until it stops for a reason. Stops of the whole
// process are passed over (the task goes back to them when it is let go), and
// so are signals that cannot be blocked.
func (t *Tracer) runTo(k *task, request int, want StopKind, deadline time.Time) error {
	sig := unix.Signal(0)
	for {
		if err := t.resume(request, k.tid, sig); err != nil {
			return err
		}
		stop, err := t.wait(k.tid, deadline)
		if err != nil {
			return err
		}
		sig = 0
		switch {
		case stop.Kind == want, stop.Kind == StopGroup && want == StopInterrupt:
			return nil
		case stop.Kind == StopSignal && stop.Signal == unix.SIGSTOP:
			sig = stop.Signal
		case stop.Kind == StopSignal:
			return fmt.Errorf("it got %v", stop.Signal)
		}
	}
}

// FinalSyscall has a stopped task make one system call, with the SYSCALL
// instruction at insn, and leaves it where it returns from that. Nothing is put
// back: whoever calls it sets the task's registers and signal mask afterwards,
// OrigRAX to NoSyscall among them. It is what StepSyscall does at half its
// price.
func (t *Tracer) FinalSyscall(tid int, insn uint64, nr uint64, args ...uint64) (ret int64, err error) {
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
		for range 2 { // before the call and behind it
			if err := t.toSyscall(tid); err != nil {
				return fmt.Errorf("run system call %d in task %d: %w", nr, tid, err)
			}
		}
		if err := getRegs(tid, &regs); err != nil {
			return taskError("read the registers of", tid, err)
		}
		ret = int64(regs[RAX])
		return nil
	})
	return ret, err
}

// toSyscall lets a task go on to where it enters or leaves a system call. Stops of
// the whole process are passed over, as in runTo.
func (t *Tracer) toSyscall(tid int) error {
	sig := unix.Signal(0)
	for {
		if err := t.resume(unix.PTRACE_SYSCALL, tid, sig); err != nil {
			return err
		}
		// Sleeping leaves the processor to the task, which looking again and
		// again would not.
		stop, _, err := t.waitSoon(tid)
		if err != nil {
			return err
		}
		sig = 0
		switch {
		case stop.Kind == StopSyscall:
			return nil
		case stop.Kind == StopSignal && stop.Signal == unix.SIGSTOP:
			sig = stop.Signal
		case stop.Kind == StopSignal:
			return fmt.Errorf("it stopped with %v", stop.Signal)
		}
	}
}
