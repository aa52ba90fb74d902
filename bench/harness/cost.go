package harness

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A cost is what a part of a restore took, none of which is the restored program.
type cost struct {
	part string
	cpu  time.Duration
	peak int64 // the largest resident set, in bytes
}

// What the parts are called.
const (
	partCommand = "command" // the one that restores
	partKeeper  = "keeper"  // what it started, but for the program
	partServer  = "server"
	partDaemon  = "daemon" // that of lazy-pages
)

// sumOf adds parts up.
func sumOf(parts []cost) (sum cost) {
	for _, p := range parts {
		sum.cpu, sum.peak = sum.cpu+p.cpu, sum.peak+p.peak
	}
	return sum
}

// costs are those of the restoring command, of what it started, and of the helpers.
func (r *Restored) costs() ([]cost, error) {
	parts, err := costsOfTree(r.restore.cmd.Process.Pid, r.image.process.Pid, partCommand, partKeeper)
	for _, helper := range r.helpers {
		if err != nil {
			break
		}
		name := partDaemon
		if strings.HasSuffix(helper.name, "serve") {
			name = partServer
		}
		var theirs []cost
		theirs, err = helper.costs(name)
		parts = append(parts, theirs...)
	}
	return joined(parts), err
}

// costs are those of a command that may have ended, or is about to.
func (c *command) costs(name string) ([]cost, error) {
	select {
	case <-c.ended:
	default:
		parts, err := costsOfTree(c.cmd.Process.Pid, 0, name, name)
		if err == nil {
			return parts, nil
		}
		select {
		case <-c.ended:
		case <-time.After(time.Second):
			return nil, err
		}
	}
	state := c.cmd.ProcessState
	one := cost{part: name, cpu: state.UserTime() + state.SystemTime()}
	if usage, ok := state.SysUsage().(*syscall.Rusage); ok {
		one.peak = usage.Maxrss << 10
	}
	return []cost{one}, nil
}

// joined adds up those with one name.
func joined(parts []cost) (list []cost) {
	for _, p := range parts {
		i := slices.IndexFunc(list, func(c cost) bool { return c.part == p.part })
		if i < 0 {
			list = append(list, p)
			continue
		}
		list[i].cpu, list[i].peak = list[i].cpu+p.cpu, list[i].peak+p.peak
	}
	return list
}

// withThose adds the parts that have left since earlier.
func withThose(parts, earlier []cost) []cost {
	for _, p := range earlier {
		if !slices.ContainsFunc(parts, func(c cost) bool { return c.part == p.part }) {
			parts = append(parts, p)
		}
	}
	return parts
}

// costsOfTree are those of a process and of its descendants, which have another
// name, but for one of them, the restored program.
func costsOfTree(pid, without int, name, below string) ([]cost, error) {
	if pid == without {
		return nil, nil
	}
	own, err := costOf(pid)
	if err != nil {
		return nil, err
	}
	own.part = name
	all := []cost{own}
	children, err := childrenOf(pid)
	if err != nil {
		return nil, err
	}
	for _, child := range children {
		theirs, err := costsOfTree(child, without, below, below)
		if _, gone := os.Stat("/proc/" + strconv.Itoa(child)); gone != nil {
			continue // it has just ended
		}
		if err != nil {
			return nil, err
		}
		all = append(all, theirs...)
	}
	return all, nil
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
