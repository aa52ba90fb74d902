package native

import (
	"errors"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// What a thread does not get from the restoring command, which may be a real-time one, it
// sets itself.
func TestSchedulingOfTheRestoringCommand(t *testing.T) {
	const base = 1 << 40
	for _, tt := range []struct {
		name string
		th   Thread
		own  ownScheduling
		want bool
	}{
		{"ordinary", Thread{}, ownScheduling{}, false},
		{"the same", Thread{Policy: unix.SCHED_FIFO, Priority: 10}, ownScheduling{policy: unix.SCHED_FIFO, priority: 10}, false},
		{"another policy", Thread{}, ownScheduling{policy: unix.SCHED_BATCH}, true},
		{"another priority", Thread{Policy: unix.SCHED_FIFO, Priority: 10}, ownScheduling{policy: unix.SCHED_FIFO, priority: 50}, true},
	} {
		buf := make([]byte, page.Size)
		b := &builder{st: new(State), own: tt.own, prog: &program{base: base, buf: buf, arena: proc.ArenaOver(base, buf)}}
		sets := false
		steps := new(table)
		b.schedulingSteps(steps, &tt.th)
		for i := range steps.steps {
			sets = sets || steps.steps[i].NR == unix.SYS_SCHED_SETSCHEDULER
		}
		if sets != tt.want {
			t.Errorf("%s: sets its policy: %v, want %v", tt.name, sets, tt.want)
		}
	}
}

// The nice value of a real-time thread is set where it is not the command's, whatever else is.
func TestNiceValueOfARealTimeThread(t *testing.T) {
	const base = 1 << 40
	fifo := ownScheduling{policy: unix.SCHED_FIFO, priority: 10, nice: 3}
	for _, tt := range []struct {
		name string
		th   Thread
		want bool
	}{
		{"the same", Thread{Policy: unix.SCHED_FIFO, Priority: 10, Nice: 3}, false},
		{"another", Thread{Policy: unix.SCHED_FIFO, Priority: 10, Nice: 5}, true},
		{"another, and flags", Thread{Policy: unix.SCHED_FIFO, Priority: 10, Nice: 5, Sched: Sched{Flags: unix.SCHED_FLAG_RESET_ON_FORK}}, true},
		{"ordinary", Thread{Nice: 5}, true},
		{"ordinary, and flags", Thread{Nice: 5, Sched: Sched{Flags: unix.SCHED_FLAG_RESET_ON_FORK}}, false}, // set with them
	} {
		buf := make([]byte, page.Size)
		b := &builder{st: new(State), own: fifo, prog: &program{base: base, buf: buf, arena: proc.ArenaOver(base, buf)}}
		sets := false
		steps := new(table)
		b.schedulingSteps(steps, &tt.th)
		for i := range steps.steps {
			sets = sets || steps.steps[i].NR&^proc.MayFail == unix.SYS_SETPRIORITY
		}
		if sets != tt.want {
			t.Errorf("%s: sets its nice value: %v, want %v", tt.name, sets, tt.want)
		}
	}
}

// A real-time command has a nice value, too, and hands it on.
func TestNiceValueOfARealTimeCommand(t *testing.T) {
	var own ownScheduling
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with it
		err := unix.Setpriority(unix.PRIO_PROCESS, 0, 19)
		if err == nil {
			err = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0)
		}
		own.inherits()
		done <- err
	}()
	if err := <-done; errors.Is(err, unix.EPERM) {
		return
	} else if err != nil {
		t.Fatal(err)
	}
	if own.policy != unix.SCHED_FIFO || own.nice != 19 {
		t.Errorf("policy %d, nice value %d, want %d, 19", own.policy, own.nice, unix.SCHED_FIFO)
	}
}

// A command that hands its scheduling on to nobody does not hand it on to a process.
func TestSchedulingThatIsReset(t *testing.T) {
	usual, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	nice := max(usual.Nice, 0)
	var own ownScheduling
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with it
		err := unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_BATCH, Nice: nice, Flags: unix.SCHED_FLAG_RESET_ON_FORK}, 0)
		own.inherits()
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if own.policy != unix.SCHED_BATCH || own.nice != int64(nice) {
		t.Errorf("what a child has of an ordinary thread: policy %d, nice value %d, want %d, %d", own.policy, own.nice, unix.SCHED_BATCH, nice)
	}
	go func() {
		runtime.LockOSThread()
		err := unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1, Flags: unix.SCHED_FLAG_RESET_ON_FORK}, 0)
		own.inherits()
		done <- err
	}()
	if err := <-done; errors.Is(err, unix.EPERM) {
		return
	} else if err != nil {
		t.Fatal(err)
	}
	if own.policy != unix.SCHED_NORMAL || own.priority != 0 {
		t.Errorf("what a child has of a real-time thread: policy %d, priority %d, want %d, 0", own.policy, own.priority, unix.SCHED_NORMAL)
	}
}
