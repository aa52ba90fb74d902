package native

import (
	"encoding/binary"
	"fmt"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// archMapVDSO is arch_prctl's ARCH_MAP_VDSO_64: it maps vvar and vDSO at an
// address, in a process that has none.
const archMapVDSO = 0x2003

// epollEvent is struct epoll_event, which this architecture packs.
func epollEvent(w *Watch) []byte {
	b := binary.NativeEndian.AppendUint32(nil, w.Events)
	return binary.NativeEndian.AppendUint64(b, w.Data)
}

// What the kernel's signal code finds in rax when a system call was
// interrupted and is to be made again; see <linux/errno.h>.
const (
	restartSys    = 512 // ERESTARTSYS
	restartNoIntr = 513 // ERESTARTNOINTR
	restartNoHand = 514 // ERESTARTNOHAND
	restartBlock  = 516 // ERESTART_RESTARTBLOCK
)

// resume is the registers with which a thread goes on as the kernel would have
// let it: a system call that was interrupted is made again, from its two-byte
// instruction, with its own arguments.
func resume(r proc.Regs) proc.Regs {
	const eintr = 4
	if r[proc.OrigRAX] == restartSyscall && -int64(r[proc.RAX]) == restartBlock {
		// Interrupted for the second time: which call it was only its kernel knew.
		r[proc.RAX], r[proc.OrigRAX] = ^uint64(eintr-1), proc.NoSyscall
	}
	if r[proc.OrigRAX] != proc.NoSyscall {
		switch -int64(r[proc.RAX]) {
		case restartSys, restartNoIntr, restartNoHand, restartBlock:
			r[proc.RAX] = r[proc.OrigRAX]
			r[proc.RIP] -= 2
		}
		r[proc.OrigRAX] = proc.NoSyscall
	}
	return r
}

// codeOf is where a thread is.
func codeOf(r *proc.Regs) uint64 { return r[proc.RIP] }

// firstTouched are where a thread touches memory first: its stack, and the
// block that its thread pointer points to.
func firstTouched(r *proc.Regs) (stack, thread uint64) { return r[proc.RSP], r[proc.FSBase] }

// archGetXCompPerm is arch_prctl's ARCH_GET_XCOMP_PERM (Linux 5.16): which state
// components the process may use; onRequest are those that it has to ask for,
// the tiles of AMX.
const (
	archGetXCompPerm = 0x1022
	onRequest        = 3 << 17
)

// xfeatures are the state components that processor and kernel offer to all
// programs (XCR0), which the kernel puts into the part of the legacy area that
// is left to software; see struct xregs_state users in the kernel's
// arch/x86/kernel/fpu/regset.c. Those that a program has to ask for (AMX) are
// left out.
func xfeatures(state []byte) uint64 {
	const at = 464
	if len(state) < at+8 {
		return 3 // x87 and SSE: a processor without xsave
	}
	return binary.NativeEndian.Uint64(state[at:]) &^ onRequest
}

// syscallInsn is the machine code of a system call.
var syscallInsn = []byte{0x0f, 0x05}

// code32 refuses a thread that runs 32-bit code, and cannot run code of ours.
func (f *Frozen) code32(th *Thread) {
	const userCS64 = 0x33 // __USER_CS
	if cs := th.Regs[proc.CS]; cs != userCS64 {
		f.c.refused.add(threadName(th.TID), fmt.Sprintf("it runs 32-bit code (code segment %#x)", cs), helpCRIU)
		f.c.mute = true
	}
}
