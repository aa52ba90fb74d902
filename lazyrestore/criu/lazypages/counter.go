package lazypages

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// counterTime is how long there is a counter at most: as long as there is one the kernel looks at each change from
// task to task.
const counterTime = time.Minute

// lingerTime is how long it stays when nobody needs it any more.
const lingerTime = time.Second

// A counter is an event of the kernel's performance counters that belongs to a
// task, which counts nothing. As long as there is one criu restore need not wait:
// it stops the tasks that it has built at hardware breakpoints, which are such
// events too, and for the first of a machine the kernel changes its code and waits
// until all processors have seen that, 4 to 20 ms on processors that idle. A
// second after the last one has gone, which a task keeps until it ends, it changes
// it back.
// (perf_event_alloc; account_event in kernel/events/core.c.)
//
// It is a mapping, without a descriptor, which the keeper would have too: so it
// goes with the daemon.
type counter struct {
	mapped chan []byte // a page of it, nil if there is none to be had; closed behind it
	limit  *time.Timer
}

// OpenCounter opens such an event of the process pid, 0: of the calling thread. It asks for no more
// rights than need be.
func OpenCounter(pid int) (fd int, err error) {
	attr := unix.PerfEventAttr{
		Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_DUMMY, Size: unix.PERF_ATTR_SIZE_VER0,
		Bits: unix.PerfBitDisabled | unix.PerfBitExcludeKernel | unix.PerfBitExcludeHv,
	}
	fd, err = unix.PerfEventOpen(&attr, pid, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
	return fd, os.NewSyscallError("perf_event_open", err)
}

// startCounter begins to count for the process pid, and does not wait for it.
func startCounter(pid int) *counter {
	c := &counter{mapped: make(chan []byte, 1)}
	go func() {
		defer close(c.mapped)
		fd, err := OpenCounter(pid)
		if err != nil {
			return // criu restore waits, as it does without us
		}
		b, err := unix.Mmap(fd, 0, os.Getpagesize(), unix.PROT_READ, unix.MAP_SHARED)
		_ = unix.Close(fd)
		if err == nil {
			c.mapped <- b
		}
	}()
	c.limit = time.AfterFunc(counterTime, c.unmap)
	return c
}

// lasts reports whether c had not come to its end by itself, and has it last as long again.
func (c *counter) lasts() bool { return c.limit.Reset(counterTime) }

// linger has it end soon, if there is one, and not now, when the tasks raise their first faults: that takes as long as to
// serve several. It costs nothing meanwhile, as the tasks have counters of their own, their breakpoints.
func (c *counter) linger() {
	if c != nil {
		c.limit.Reset(lingerTime)
	}
}

// stop ends it, if there is one; it may be called again.
func (c *counter) stop() {
	if c == nil {
		return
	}
	c.limit.Stop()
	c.unmap()
}

// unmap ends it. It may be called again, and before there is a limit.
func (c *counter) unmap() {
	if b, ok := <-c.mapped; ok {
		_ = unix.Munmap(b)
	}
}
