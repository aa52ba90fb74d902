// Package thread is how the threads of a restore get along with the two schedulers
// that they are under. Of the kernel's they ask that one which everything waits for goes
// first, and that those that work ahead go last: Hurry, FallBehind, MoveTo, Yield and Sleep.
// These concern the calling thread, whose goroutine has to be locked to it. They are
// wishes: where the kernel or its administrator does not grant them things take
// longer, and nothing else changes.
//
// Go's is given room for all that are busy at a time (MakeRoom), and is not told of reads
// that wait for nothing (PreadNow, PreadMemory): these are for any goroutine.
package thread

import (
	"time"

	"golang.org/x/sys/unix"
)

// shortSlice is the least that the kernel takes.
const shortSlice = 100_000 // ns

// Hurry lets the thread run as soon as it can: with a time slice shorter than
// anybody's it goes first when it wakes, where it would else wait for the end
// of another thread's slice of some milliseconds (Linux 6.12). Its share of
// the processor stays what it is, and what it starts is not in a hurry. The
// function that is returned ends it, on whatever thread it is called.
func Hurry() (end func()) {
	tid := unix.Gettid()
	attr, err := unix.SchedGetAttr(0, 0)
	if err != nil || attr.Policy != unix.SCHED_NORMAL || attr.Nice < 0 || attr.Flags != 0 {
		return func() {}
	}
	short := *attr
	short.Flags, short.Runtime = unix.SCHED_FLAG_RESET_ON_FORK, shortSlice
	if err := unix.SchedSetAttr(0, &short, 0); err != nil {
		return func() {}
	}
	return func() {
		attr.Runtime = 0
		_ = unix.SchedSetAttr(tid, attr, 0)
	}
}

// behindNice is the nice value of a thread that works ahead.
const behindNice = 5

// A Behind is a thread that works ahead of what is asked for, and gives way to
// the application. Its goroutine must keep the thread to itself until both
// end: the priority stays.
type Behind struct {
	mayReturn bool // from the idle policy
	yielding  bool
}

// FallBehind makes the calling thread one.
func FallBehind() *Behind {
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, behindNice)
	return &Behind{mayReturn: hasCapability(unix.CAP_SYS_NICE)}
}

// Yield says whether somebody waits. While somebody does, the thread runs only
// where nobody else wants to: anyone who wakes takes the processor from it at
// once, not at the end of its slice. It must not stay so, for beside a program
// that computes on every processor it would come to nothing.
func (b *Behind) Yield(waited bool) {
	if waited == b.yielding || !b.mayReturn {
		return
	}
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Nice: behindNice}
	if waited {
		attr.Policy = unix.SCHED_IDLE
	}
	if unix.SchedSetAttr(0, &attr, 0) != nil {
		return
	}
	if b.yielding = waited; waited {
		Yield() // who waits for its processor already is not about to wake
	}
}

// MoveTo has the thread go to a processor, if it is on another one and may run there.
// It may be moved away again at once.
func MoveTo(cpu int) {
	var all, one unix.CPUSet
	if cpu == Processor() || unix.SchedGetaffinity(0, &all) != nil || !all.IsSet(cpu) {
		return
	}
	one.Set(cpu)
	if unix.SchedSetaffinity(0, &one) == nil {
		_ = unix.SchedSetaffinity(0, &all)
	}
}

// Yield lets all others go first who wait for this thread's processor.
func Yield() { _, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }

// Sleep has the thread sleep for d, or until a signal comes. Unlike time.Sleep
// it takes no other thread to wake it.
func Sleep(d time.Duration) {
	t := unix.NsecToTimespec(int64(d))
	_ = unix.Nanosleep(&t, nil)
}

// hasCapability reports whether the thread has a capability.
func hasCapability(c uint) bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false
	}
	return data[c/32].Effective&(1<<(c%32)) != 0
}
