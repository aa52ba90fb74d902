package lazypages

import "golang.org/x/sys/unix"

// A counter is an event of the kernel's performance counters that belongs to a
// task, which counts nothing. As long as there is one criu restore need not wait:
// it stops the tasks that it has built at hardware breakpoints, which are such
// events too, and for the first of a machine the kernel changes its code and waits
// until all processors have seen that, 4 to 20 ms on processors that idle. A
// second after the last one has gone, which a task keeps until it ends, it changes
// it back.
// (perf_event_alloc; account_event in kernel/events/core.c.)
type counter struct {
	opened chan int // the descriptor, -1 if there is none to be had; closed behind it
}

// startCounter begins to count for the process pid, and does not wait for it.
func startCounter(pid int) *counter {
	c := &counter{make(chan int, 1)}
	go func() {
		defer close(c.opened)
		attr := unix.PerfEventAttr{
			Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_DUMMY, Size: unix.PERF_ATTR_SIZE_VER0,
			Bits: unix.PerfBitDisabled | unix.PerfBitExcludeKernel | unix.PerfBitExcludeHv, // no more rights than need be
		}
		fd, err := unix.PerfEventOpen(&attr, pid, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
		if err != nil {
			fd = -1 // criu restore waits, as it does without us
		}
		c.opened <- fd
	}()
	return c
}

// stop ends it, if there is one; it may be called again.
func (c *counter) stop() {
	if c == nil {
		return
	}
	if fd, ok := <-c.opened; ok && fd >= 0 {
		_ = unix.Close(fd)
	}
}
