package harness

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A cost is what the parts of a restore took that are not the restored program.
type cost struct {
	cpu  time.Duration
	peak int64 // the largest resident sets of all parts, added up, in bytes
}

// cost adds up the restoring command, what it started, and the helpers.
func (r *Restored) cost() (cost, error) {
	sum, err := costOfTree(r.restore.cmd.Process.Pid, r.image.process.Pid)
	for _, helper := range r.helpers {
		if err != nil {
			break
		}
		var one cost
		select {
		case <-helper.ended:
			state := helper.cmd.ProcessState
			one.cpu = state.UserTime() + state.SystemTime()
			if usage, ok := state.SysUsage().(*syscall.Rusage); ok {
				one.peak = usage.Maxrss << 10
			}
		default:
			one, err = costOfTree(helper.cmd.Process.Pid, 0)
		}
		sum.cpu, sum.peak = sum.cpu+one.cpu, sum.peak+one.peak
	}
	return sum, err
}

// costOfTree is what a process and its descendants took, but for one of them,
// the restored program.
func costOfTree(pid, without int) (cost, error) {
	if pid == without {
		return cost{}, nil
	}
	sum, err := costOf(pid)
	if err != nil {
		return cost{}, err
	}
	children, err := childrenOf(pid)
	if err != nil {
		return cost{}, err
	}
	for _, child := range children {
		theirs, err := costOfTree(child, without)
		if err != nil {
			return cost{}, err
		}
		sum.cpu, sum.peak = sum.cpu+theirs.cpu, sum.peak+theirs.peak
	}
	return sum, nil
}

// costOf is that of one process: the clock of its processor time, which counts
// threads that have ended too, and the high-water mark of its resident set.
func costOf(pid int) (cost, error) {
	var used unix.Timespec
	const processWide = 2 // CPUCLOCK_SCHED, of the process; the pid is in the other bits, inverted
	if err := unix.ClockGettime(int32(^pid)<<3|processWide, &used); err != nil {
		return cost{}, fmt.Errorf("processor time of pid %d: %w", pid, err)
	}
	c := cost{cpu: time.Duration(used.Nano())}
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return cost{}, fmt.Errorf("memory of pid %d: %w", pid, err)
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			if err != nil {
				return cost{}, fmt.Errorf("memory of pid %d: %w", pid, err)
			}
			c.peak = kib << 10
		}
	}
	return c, nil
}

// childrenOf lists the children of all threads of a process.
func childrenOf(pid int) (list []int, err error) {
	proc := "/proc/" + strconv.Itoa(pid)
	threads, err := os.ReadDir(proc + "/task")
	if err != nil {
		return nil, fmt.Errorf("threads of pid %d: %w", pid, err)
	}
	for _, thread := range threads {
		// A thread that has just ended has no children.
		children, _ := os.ReadFile(proc + "/task/" + thread.Name() + "/children")
		for child := range strings.FieldsSeq(string(children)) {
			number, err := strconv.Atoi(child)
			if err != nil {
				return nil, fmt.Errorf("children of pid %d: %w", pid, err)
			}
			list = append(list, number)
		}
	}
	return list, nil
}
