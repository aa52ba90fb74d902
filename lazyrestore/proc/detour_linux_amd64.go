package proc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// A detour is code that makes one system call and then goes back by itself to
// where the thread was, with its signal mask and all registers that the call
// has used. It is what an Injector maps its region with, and unmaps it: in
// between the loop has its own way back. A tracer takes the thread away behind
// the first SYSCALL; if it has died the thread goes on through the rest.
//
// A detour lies in the zero bytes behind the end of the vDSO, the one place
// that every process may execute and none uses. Writing there gives the
// process a copy of the page; the zeros are put back.

// detourSize is the size of a detour, a multiple of 8.
const detourSize = 144

// detour is the code that goes back to registers r and signal mask mask.
func detour(r *Regs, mask uint64) []byte {
	le := binary.LittleEndian
	code := make([]byte, 0, detourSize)
	code = append(code, syscallInsn...)
	code = append(
		code,
		0xb8, unix.SYS_RT_SIGPROCMASK, 0, 0, 0, // MOVL  $nr, AX
		0xbf, unix.SIG_SETMASK, 0, 0, 0, // MOVL  $SIG_SETMASK, DI
		0x48, 0x8d, 0x35, detourSize-8-19, 0, 0, 0, // LEAQ  mask(IP), SI
		0xba, 0, 0, 0, 0, // MOVL  $0, DX
		0x41, 0xba, 8, 0, 0, 0, // MOVL  $8, R10
	)
	code = append(code, syscallInsn...)
	for _, m := range [...]struct {
		reg int
		op  [2]byte // MOVABS $imm64, reg
	}{
		{RAX, [2]byte{0x48, 0xb8}},
		{RDI, [2]byte{0x48, 0xbf}},
		{RSI, [2]byte{0x48, 0xbe}},
		{RDX, [2]byte{0x48, 0xba}},
		{RCX, [2]byte{0x48, 0xb9}},
		{R8, [2]byte{0x49, 0xb8}},
		{R9, [2]byte{0x49, 0xb9}},
		{R10, [2]byte{0x49, 0xba}},
		{R11, [2]byte{0x49, 0xbb}},
	} {
		code = le.AppendUint64(append(code, m.op[:]...), r[m.reg])
	}
	code = append(code, 0xff, 0x25, 0, 0, 0, 0) // JMP *0(IP)
	code = le.AppendUint64(code, r[RIP])
	return le.AppendUint64(code, mask)
}

// vdsoMargin is how many bytes behind the last that is not zero are taken to
// belong to the vDSO: a section header may end in zeros.
const vdsoMargin = 64

// detourPlaces lists addresses in a process where a detour may lie, those that
// no one has used first: a tracer that died leaves its detour behind.
func detourPlaces(pid int, vdso page.Range) ([]uint64, error) {
	auxv, err := ReadAuxv(unix.Getpid())
	if err != nil {
		return nil, err
	}
	at, ok := auxv.Get(AuxSysinfoEHDR)
	if !ok {
		return nil, ErrNoVDSO
	}
	own, theirs := make([]byte, vdso.Len()), make([]byte, vdso.Len())
	if _, err := ReadMemory(unix.Getpid(), at, own); err != nil {
		return nil, err
	}
	if _, err := ReadMemory(pid, uint64(vdso.Start), theirs); err != nil {
		return nil, err
	}
	end := len(bytes.TrimRight(own, "\x00"))
	if !bytes.Equal(own[:end], theirs[:end]) {
		return nil, errors.New("the process has a vDSO that is not this kernel's")
	}
	var clean, used []uint64
	for off := len(own) - detourSize; off >= end+vdsoMargin; off -= detourSize {
		place := uint64(vdso.Start) + uint64(off)
		if len(bytes.Trim(theirs[off:off+detourSize], "\x00")) == 0 {
			clean = append(clean, place)
		} else {
			used = append(used, place)
		}
	}
	return append(clean, used...), nil
}

// detourPlace is an address for a detour where no thread stands.
func (t *Tracer) detourPlace(pid int, vdso page.Range) (uint64, error) {
	places, err := detourPlaces(pid, vdso)
	if err != nil {
		return 0, err
	}
next:
	for _, p := range places {
		for tid, k := range t.tasks {
			if k.pid != pid {
				continue
			}
			var r Regs
			if err := getRegs(tid, &r); err != nil {
				return 0, taskError("read the registers of", tid, err)
			}
			if r[RIP]-p < detourSize {
				continue next
			}
		}
		return p, nil
	}
	return 0, errors.New("there is no room behind the vDSO")
}

// detourSyscall has a stopped task make one system call, and stop again, by way
// of a detour at place; else it is as StepSyscall.
func (t *Tracer) detourSyscall(tid int, place uint64, nr uint64, args ...uint64) (ret int64, err error) {
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
	back := saved.interrupted()
	if err := t.writeCode(tid, place, detour(&back, mask)); err != nil {
		return 0, err
	}
	regs := saved.call(place, nr, args)
	regs[EFlags] = saved[EFlags] // the detour leaves them alone
	ret, err = t.divert(k, &regs, mask, &saved)
	var exit *ExitError
	if errors.As(err, &exit) {
		return 0, err
	}
	return ret, errors.Join(err, t.writeCode(tid, place, make([]byte, detourSize)))
}

// divert sets a task's registers, has it make the system call that they stand
// at, and puts registers and mask back. The mask is changed while the registers
// are the call's, both ways: code that takes over if we die puts back both.
func (t *Tracer) divert(k *task, regs *Regs, mask uint64, saved *Regs) (ret int64, err error) {
	err = taskError("set the registers of", k.tid, setRegs(k.tid, regs))
	if err == nil {
		err = taskError("set the signal mask of", k.tid, setSigMask(k.tid, ^uint64(0)))
	}
	if err == nil {
		ret, err = t.roundTrip(k)
	}
	var exit *ExitError
	if errors.As(err, &exit) {
		return 0, err
	}
	return ret, errors.Join(
		err,
		taskError("set the signal mask of", k.tid, setSigMask(k.tid, mask)),
		taskError("set the registers of", k.tid, setRegs(k.tid, saved)),
	)
}

// writeCode writes code, a multiple of 8 bytes, where the task itself may not.
func (t *Tracer) writeCode(tid int, at uint64, code []byte) error {
	for i := 0; i+8 <= len(code); i += 8 {
		if err := t.PokeWord(tid, at+uint64(i), binary.LittleEndian.Uint64(code[i:])); err != nil {
			return fmt.Errorf("write a detour: %w", err)
		}
	}
	return nil
}
