package proc

import (
	"errors"

	"golang.org/x/sys/unix"
)

// GetRegs reads the general registers of a stopped task.
func (t *Tracer) GetRegs(tid int) (r Regs, err error) {
	err = t.Do(func() error { return taskError("read the registers of", tid, getRegs(tid, &r)) })
	return r, err
}

// SetRegs sets the general registers of a stopped task, OrigRAX and the bases
// of FS and GS among them.
func (t *Tracer) SetRegs(tid int, r *Regs) error {
	return t.Do(func() error { return taskError("set the registers of", tid, setRegs(tid, r)) })
}

// GetXState reads the extended registers of a stopped task as XSAVE lays them out
// (NT_X86_XSTATE): x87, SSE, AVX and what else the processor has.
func (t *Tracer) GetXState(tid int) (state []byte, err error) {
	err = t.Do(func() error {
		state, err = t.xstate(tid)
		return err
	})
	return state, err
}

func (t *Tracer) xstate(tid int) ([]byte, error) {
	// The kernel fills what there is room for: a buffer that is not filled
	// was large enough.
	for size := 4096; ; size *= 2 {
		buf := make([]byte, size)
		n, err := getRegSet(tid, ntX86XState, buf)
		if err != nil {
			return nil, taskError("read the extended registers of", tid, err)
		}
		if n < size {
			return buf[:n:n], nil
		}
	}
}

// Further register sets; see the kernel's <linux/elf.h>.
const (
	RegSetTLS    = 0x200 // NT_386_TLS: segments that a thread has set
	RegSetIOPerm = 0x201 // NT_386_IOPERM: I/O ports that it may use
)

// GetRegSet reads a register set of a stopped task. The error is unix.ENXIO
// where it has none of the kind.
func (t *Tracer) GetRegSet(tid int, set uintptr) (b []byte, err error) {
	err = t.Do(func() error {
		buf := make([]byte, 8192)
		n, err := getRegSet(tid, set, buf)
		b = buf[:n]
		return taskError("read a register set of", tid, err)
	})
	return b, err
}

// SetXState sets the extended registers of a stopped task. The error is
// unix.EINVAL where the processor lacks one of them.
func (t *Tracer) SetXState(tid int, state []byte) error {
	if len(state) == 0 {
		return taskError("set the extended registers of", tid, unix.EINVAL)
	}
	return t.Do(func() error {
		return taskError("set the extended registers of", tid, setRegSet(tid, ntX86XState, state))
	})
}

// GetSigMask reads the signals that a stopped task blocks.
func (t *Tracer) GetSigMask(tid int) (mask uint64, err error) {
	err = t.Do(func() error {
		mask, err = getSigMask(tid)
		return taskError("read the signal mask of", tid, err)
	})
	return mask, err
}

// SetSigMask sets the signals that a stopped task blocks.
func (t *Tracer) SetSigMask(tid int, mask uint64) error {
	return t.Do(func() error { return taskError("set the signal mask of", tid, setSigMask(tid, mask)) })
}

// PeekSignals lists the signals that wait for a stopped task, in order, each as
// a siginfo_t: those sent to the task, or with shared those sent to its process.
func (t *Tracer) PeekSignals(tid int, shared bool) (list [][]byte, err error) {
	err = t.Do(func() error {
		for {
			buf := make([]byte, 32*SiginfoSize)
			n, err := peekSiginfo(tid, len(list), shared, buf)
			if err != nil {
				return taskError("read the pending signals of", tid, err)
			}
			for i := range n {
				list = append(list, buf[i*SiginfoSize:(i+1)*SiginfoSize:(i+1)*SiginfoSize])
			}
			if n == 0 {
				return nil
			}
		}
	})
	return list, err
}

// RSeqConfig is a task's registration of restartable sequences, see rseq(2).
type RSeqConfig struct {
	Addr uint64 // 0: none
	Len  uint32
	Sig  uint32
}

// GetRSeq reads a stopped task's registration of restartable sequences.
func (t *Tracer) GetRSeq(tid int) (c RSeqConfig, err error) {
	err = t.Do(func() error {
		r, err := getRSeq(tid)
		if errors.Is(err, unix.EIO) {
			return nil // a kernel without CONFIG_RSEQ
		}
		c = RSeqConfig{r.pointer, r.size, r.signature}
		return taskError("read the restartable sequences of", tid, err)
	})
	return c, err
}

// SyscallInfo tells the architecture that a stopped task's system calls have
// (AUDIT_ARCH_ of <linux/audit.h>).
func (t *Tracer) SyscallInfo(tid int) (arch uint32, err error) {
	err = t.Do(func() error {
		s, err := getSyscallInfo(tid)
		arch = s.arch
		return taskError("read the architecture of", tid, err)
	})
	return arch, err
}

// SyscallDispatch reports whether a stopped task has system calls dispatched to
// user space, see prctl(PR_SET_SYSCALL_USER_DISPATCH). Kernels before 6.4 do
// not tell; known is false there.
func (t *Tracer) SyscallDispatch(tid int) (on, known bool, err error) {
	err = t.Do(func() error {
		c, err := getDispatch(tid)
		if errors.Is(err, unix.EIO) || errors.Is(err, unix.EINVAL) {
			return nil
		}
		on, known = c.mode != 0, err == nil
		return taskError("read the system call dispatch of", tid, err)
	})
	return on, known, err
}

// RobustList reads the head of a task's list of robust futexes, and the length
// that it was registered with; see get_robust_list(2).
func RobustList(tid int) (head, length uint64, err error) {
	head, length, err = getRobustList(tid)
	return head, length, taskError("read the robust list of", tid, err)
}

// PokeWord writes eight bytes into the memory of a stopped task, whatever the
// protection of the mapping. The error is unix.EIO where the page is missing.
func (t *Tracer) PokeWord(tid int, addr, v uint64) error {
	return t.Do(func() error {
		return taskError("write the memory of", tid, ptrace(unix.PTRACE_POKEDATA, tid, uintptr(addr), uintptr(v)))
	})
}
