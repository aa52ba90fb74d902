package native

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// What of a sleep is in registers. poll(fds, n, ms), futex(addr, op, value,
// timeout), nanosleep(time, rest), clock_nanosleep(clock, flags, time, rest).

const restartSyscall = unix.SYS_RESTART_SYSCALL

// sleeps reports whether r is of a thread that was interrupted in a sleep.
func sleeps(r *proc.Regs) bool {
	return r[proc.OrigRAX] != proc.NoSyscall && -int64(r[proc.RAX]) == restartBlock
}

func sleepCall(r *proc.Regs) uint64        { return r[proc.OrigRAX] }
func setSleepCall(r *proc.Regs, nr uint64) { r[proc.OrigRAX] = nr }

// See <linux/futex.h>.
const (
	futexWaitOp = 0
	futexOpMask = 0x7f // without FUTEX_PRIVATE_FLAG, and
	futexClock  = 0x100
)

// timed reports whether a call has a timeout that runs from when it is made.
func timed(nr uint64, r *proc.Regs) bool {
	switch nr {
	case unix.SYS_POLL:
		return int32(r[proc.RDX]) > 0
	case unix.SYS_FUTEX:
		return r[proc.RSI]&futexOpMask&^futexClock == futexWaitOp && r[proc.R10] != 0
	case unix.SYS_NANOSLEEP:
		return true
	case unix.SYS_CLOCK_NANOSLEEP:
		return r[proc.RSI]&unix.TIMER_ABSTIME == 0
	}
	return false
}

// nanosleepOf tells the two calls apart: one begins with an address, the other
// with the number of a clock.
func nanosleepOf(r *proc.Regs) uint64 {
	const lowest = 4096
	if clock := int32(r[proc.RDI]); r[proc.RDI] < lowest || int64(clock) == int64(r[proc.RDI]) && clock < 0 {
		return unix.SYS_CLOCK_NANOSLEEP
	}
	return unix.SYS_NANOSLEEP
}

// sleepClock is the clock by which the kernel's timer goes; none for clocks
// that have no timer of the kind.
func sleepClock(nr uint64, r *proc.Regs) (name string, clock int32) {
	if nr == unix.SYS_CLOCK_NANOSLEEP {
		switch r[proc.RDI] {
		case unix.CLOCK_REALTIME, unix.CLOCK_MONOTONIC:
		case unix.CLOCK_BOOTTIME:
			return "boottime", unix.CLOCK_BOOTTIME
		default:
			return "", 0
		}
	}
	return "monotonic", unix.CLOCK_MONOTONIC
}

// remainderAt is where the kernel has written what is left; 0: nowhere.
func remainderAt(nr uint64, r *proc.Regs) uint64 {
	switch nr {
	case unix.SYS_NANOSLEEP:
		return r[proc.RSI]
	case unix.SYS_CLOCK_NANOSLEEP:
		return r[proc.R10]
	}
	return 0
}

// sleepMemory are the addresses and lengths of what a call uses.
func sleepMemory(nr uint64, r *proc.Regs) [2][2]uint64 {
	switch nr {
	case unix.SYS_POLL:
		const most = 1 << 20 // descriptors of a process
		return [2][2]uint64{{r[proc.RDI], 8 * min(r[proc.RSI], most)}}
	case unix.SYS_FUTEX:
		return [2][2]uint64{{r[proc.RDI], 4}}
	}
	return [2][2]uint64{{remainderAt(nr, r), 16}}
}

// withTime is a call's arguments with what is left of its time, which lies at
// addr as a struct timespec.
func withTime(nr uint64, r *proc.Regs, addr, left uint64) [6]uint64 {
	args := [6]uint64{r[proc.RDI], r[proc.RSI], r[proc.RDX], r[proc.R10], r[proc.R8], r[proc.R9]}
	switch nr {
	case unix.SYS_POLL:
		args[2] = min((left+uint64(time.Millisecond)-1)/uint64(time.Millisecond), 1<<31-1)
	case unix.SYS_FUTEX:
		args[3] = addr
	case unix.SYS_NANOSLEEP:
		args[0] = addr
	case unix.SYS_CLOCK_NANOSLEEP:
		args[2] = addr
	}
	return args
}

// stillAsleep is r for a thread that sleeps again: the kernel has it go on by
// restart_syscall(2).
func stillAsleep(r *proc.Regs) proc.Regs { return *r }

// awake is r for a thread whose call has returned.
func awake(r *proc.Regs, ret int64) proc.Regs {
	out := *r
	out[proc.RAX], out[proc.OrigRAX] = uint64(ret), proc.NoSyscall
	return out
}
