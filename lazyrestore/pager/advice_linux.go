package pager

import (
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// A REMOVE event does not say what caused it. For private memory that is the
// same: the pages are zero. Shared memory keeps its content with MADV_DONTNEED,
// which only takes it out of one page table, and loses it with MADV_REMOVE.
// The thread that asked is held in madvise(2) until the event is read, so what
// it asked for is looked up before that. A removal that no thread is seen to
// ask for (by io_uring, say) counts as one that loses the content.

// An advice is a call of madvise that a thread of the process is in.
type advice struct {
	page.Range
	advice int
}

// keptBy lists the ranges that the calls take out of a page table alone. One
// that another call is about to remove is not among them.
func keptBy(calls []advice) []page.Range {
	var kept, removed page.Set
	for _, c := range calls {
		if c.advice == unix.MADV_REMOVE {
			removed.Add(c.Range)
		} else {
			kept.Add(c.Range)
		}
	}
	for r := range removed.All() {
		kept.Remove(r)
	}
	return slices.Collect(kept.All())
}

// adviceCalls lists the calls of madvise that threads of pid are in. For a
// forked child, whose pid is not known (0), it lists those of all processes.
func adviceCalls(pid int) []advice {
	if pid != 0 {
		return adviceCallsOf(strconv.Itoa(pid))
	}
	all, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var calls []advice
	for _, p := range all {
		if _, err := strconv.Atoi(p.Name()); err == nil {
			calls = append(calls, adviceCallsOf(p.Name())...)
		}
	}
	return calls
}

func adviceCallsOf(pid string) []advice {
	dir := "/proc/" + pid + "/task"
	tasks, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var calls []advice
	for _, t := range tasks {
		b, err := os.ReadFile(dir + "/" + t.Name() + "/syscall")
		if err != nil {
			continue
		}
		if c, ok := parseAdvice(string(b)); ok {
			calls = append(calls, c)
		}
	}
	return calls
}

// parseAdvice is the call that a line of /proc/PID/task/TID/syscall shows, if
// it is one of madvise: its number and six arguments in hex.
func parseAdvice(line string) (advice, bool) {
	f := strings.Fields(line)
	if len(f) < 4 || f[0] != strconv.Itoa(unix.SYS_MADVISE) {
		return advice{}, false
	}
	var args [3]uint64
	for i := range args {
		v, err := strconv.ParseUint(f[i+1], 0, 64)
		if err != nil {
			return advice{}, false
		}
		args[i] = v
	}
	r := page.Range{Start: page.Addr(args[0]), End: (page.Addr(args[0]) + page.Addr(args[1])).Up()}
	return advice{r, int(int32(uint32(args[2])))}, !r.Empty()
}

// faultsPending reports whether the next message of the uffd is a fault: they
// are read before all events.
func faultsPending(fd int) bool {
	b, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return false
	}
	_, rest, ok := strings.Cut(string(b), "pending:\t")
	return ok && !strings.HasPrefix(rest, "0\n")
}
