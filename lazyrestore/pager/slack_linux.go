package pager

import (
	"errors"
	"os"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// longSlack is the timer slack (PR_SET_TIMERSLACK of prctl(2)), in nanoseconds, with
// which Go begins in a command that is entered as Keeper says, if it has
// CAP_SYS_NICE: Go's thread sysmon else wakes each 100 µs, mostly on the processor
// of the thread that everything waits for. All threads inherit it, and so would
// what is started by any of them.
const longSlack = 1_000_000

// OwnSlack is the timer slack that this program was started with, if its
// threads have a longer one; 0: they have not.
func OwnSlack() uint64 { return enteredSlack() }

// GiveSlackBack gives all threads of this program the timer slack that it was
// started with, once nobody waits for the restored process any more, or
// before anything else is started.
func GiveSlackBack() error {
	own := enteredSlack()
	for again := own != 0; again; {
		tids, err := proc.ReadTasks(os.Getpid())
		if err != nil {
			return err
		}
		again = false // but for threads that one of these starts meanwhile
		for _, tid := range tids {
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
