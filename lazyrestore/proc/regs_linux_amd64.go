package proc

// Regs are the general registers of a thread: struct user_regs_struct in the
// order of the kernel's <asm/user_64.h>.
type Regs [27]uint64

// Places of registers in Regs.
const (
	R15 = iota
	R14
	R13
	R12
	RBP
	RBX
	R11
	R10
	R9
	R8
	RAX
	RCX
	RDX
	RSI
	RDI
	OrigRAX // number of the system call that the thread is in; NoSyscall: none
	RIP
	CS
	EFlags
	RSP
	SS
	FSBase
	GSBase
	DS
	ES
	FS
	GS
)

// NoSyscall in OrigRAX: the thread is in no system call, so that the kernel
// will not restart one.
const NoSyscall = ^uint64(0)

// What the kernel leaves in RAX of a thread whose system call was interrupted
// and that it has not decided about; see the kernel's <linux/errno.h>.
const (
	restartSys    = 512 // ERESTARTSYS: restart unless a handler without SA_RESTART runs
	restartNoIntr = 513 // ERESTARTNOINTR: restart always
	restartNoHand = 514 // ERESTARTNOHAND: restart if no handler runs
	restartBlock  = 516 // ERESTART_RESTARTBLOCK: restart_syscall(2) knows what is left to do
)

// Flags of EFLAGS that would disturb code of ours.
const (
	flagTrap      = 1 << 8
	flagDirection = 1 << 10
)

// sysRestart is restart_syscall(2): a call that has been interrupted before.
const sysRestart = 219

// interrupted says how a system call that r shows as interrupted ends, for
// whoever cannot leave that to the kernel: by being made again with its own
// arguments (a relative sleep begins anew), or with EINTR where its number is
// lost because it had been interrupted before.
func (r *Regs) interrupted() Regs {
	out := *r
	if r[OrigRAX] == NoSyscall {
		return out
	}
	out[OrigRAX] = NoSyscall
	switch -int64(r[RAX]) {
	case restartSys, restartNoIntr, restartNoHand, restartBlock:
		if r[OrigRAX] == sysRestart {
			out[RAX] = ^uint64(4) + 1 // EINTR
			break
		}
		out[RAX] = r[OrigRAX]
		out[RIP] -= 2
	}
	return out
}

// call is r changed such that the thread makes a system call with the
// instruction at addr.
func (r *Regs) call(addr, nr uint64, args []uint64) Regs {
	out := *r
	out[RIP], out[RAX], out[OrigRAX] = addr, nr, NoSyscall
	out[EFlags] &^= flagTrap | flagDirection
	for i, reg := range [6]int{RDI, RSI, RDX, R10, R8, R9} {
		out[reg] = 0
		if i < len(args) {
			out[reg] = args[i]
		}
	}
	return out
}

// syscallInsn is the machine code of SYSCALL.
var syscallInsn = []byte{0x0f, 0x05}
