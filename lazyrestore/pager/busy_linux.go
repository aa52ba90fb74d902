package pager

import (
	"encoding/binary"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// busyTime is how long a thread has run, in busySteps that were seen, if it is not on its way to its sleep, which
	// takes some microseconds: not even if the processor was taken away from the machine in between.
	busyTime  = 100 * time.Microsecond
	busySteps = 3
	// tickTime and tickSteps are that where what is counted moves at ticks of the clock alone. Some of the
	// first step may have been before it was asked.
	tickTime  = time.Millisecond
	tickSteps = 2
)

// A runTime is how long a thread has run since it was first asked, by a counter of the kernel's that counts while
// it runs, or, where there is none to be had, by its schedstat file, which is up to date at ticks (1 to 10 ms).
type runTime struct {
	counter     int // -1: none
	schedstat   string
	first, last time.Duration
	steps       int
}

// newRunTime begins to count for the thread whose directory is dir.
func newRunTime(dir string) (*runTime, error) {
	t := &runTime{counter: -1, schedstat: dir + "/schedstat"}
	n, err := strconv.Atoi(path.Base(dir))
	if err != nil {
		return nil, err
	}
	attr := unix.PerfEventAttr{
		Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_TASK_CLOCK, Size: unix.PERF_ATTR_SIZE_VER0,
		Bits: unix.PerfBitExcludeKernel | unix.PerfBitExcludeHv, // to ask for no more than need be: it counts all
	}
	if fd, err := unix.PerfEventOpen(&attr, n, -1, -1, unix.PERF_FLAG_FD_CLOEXEC); err == nil {
		t.counter = fd
	}
	t.first, err = t.now()
	t.last = t.first
	return t, err
}

func (t *runTime) now() (time.Duration, error) {
	if t.counter >= 0 {
		var b [8]byte
		_, err := unix.Read(t.counter, b[:])
		return time.Duration(binary.NativeEndian.Uint64(b[:])), err
	}
	line, err := readLine(t.schedstat)
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(line, " ")
	n, err := strconv.ParseInt(first, 10, 64)
	if err != nil || strings.HasPrefix(line, "0 0 0") {
		return 0, errUnsure // the kernel does not count, or not yet
	}
	return time.Duration(n), nil
}

// isBusy reports whether the thread has run so much since it was first asked that it is in no call.
func (t *runTime) isBusy() (bool, error) {
	now, err := t.now()
	if err != nil {
		return false, err
	}
	if now > t.last {
		t.last = now
		t.steps++
		if t.counter < 0 && t.steps == 1 {
			t.first = now
		}
	}
	if t.counter < 0 {
		return t.steps >= tickSteps && now-t.first > tickTime, nil
	}
	return t.steps >= busySteps && now-t.first > busyTime, nil
}

func (t *runTime) close() {
	if t.counter >= 0 {
		_ = unix.Close(t.counter)
	}
}
