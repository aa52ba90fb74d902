package pager

import (
	"errors"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
	"github.com/lazyrestore/lazyrestore/lazyrestore/thread"
)

// longSlack is the timer slack (PR_SET_TIMERSLACK of prctl(2)), in nanoseconds, with
// which Go begins in a command that is entered as Keeper says, if it has
// CAP_SYS_NICE: Go's thread sysmon else wakes each 100 µs, mostly on the processor
// of the thread that everything waits for. All threads inherit it, and so would
// what is started by any of them (WithOwnSlack).
const longSlack = 1_000_000

// OwnSlack is the timer slack that this program was started with, if its
// threads have a longer one; 0: they have not.
func OwnSlack() uint64 { return enteredSlack() }

// GiveSlackBack gives the threads that there are the timer slack that this program
// was started with, once nobody waits for the restored process any more: all but sysmon.
// Each time that it has taken the right to run Go from a thread, as it does when the reader
// has slept for 10 ms, that wakes 50 times as soon as it can. Where Go runs one goroutine at
// a time sysmon has its slack back too: a worker then gets to run only when that has
// taken the right to from the reader. Threads that it starts
// later have the long slack: those that sleep for microseconds take their own (nap),
// and so do those that start something else (WithOwnSlack).
func GiveSlackBack() error {
	own := enteredSlack()
	for again := own != 0; again; {
		tids, err := proc.ReadTasks(os.Getpid())
		if err != nil {
			return err
		}
		calm := 0
		if runtime.GOMAXPROCS(0) > 1 {
			calm = sysmonOf(os.Getpid(), tids)
		}
		again = false // but for threads that one of these starts meanwhile
		for _, tid := range tids {
			if tid == calm {
				continue
			}
			slack, err := proc.ReadTimerSlack(tid)
			if err == nil && slack == longSlack {
				again, err = true, proc.WriteTimerSlack(tid, own)
			}
			if err != nil && !errors.Is(err, proc.ErrNoProcess) {
				return err
			}
		}
	}
	return nil
}

// sysmonOf is Go's thread sysmon among a program's threads, whose ids ascend: the one that
// it makes first. Ids are given out in turn, and begin anew at their end.
func sysmonOf(pid int, tids []int) int {
	for _, tid := range tids {
		if tid > pid {
			return tid
		}
	}
	return tids[0]
}

// WithOwnSlack calls start, which starts another program, on a thread with the timer slack that
// this one was started with. It is what the other one begins with, and has as its default: a
// child has that of the very thread that makes it.
func WithOwnSlack(start func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ownSlack()
	return start()
}

// ownSlack has the calling thread take the timer slack that this program was started
// with: sysmon may have made it.
func ownSlack() {
	if own := enteredSlack(); own != 0 {
		_, _, _ = unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_TIMERSLACK, uintptr(own), 0, 0, 0, 0)
	}
}

// nap is a sleep that is to be short.
func nap(d time.Duration) {
	ownSlack()
	thread.Sleep(d)
}
