package main

import (
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// As long as the tree is being built there is a performance counter of a task, so that
// the breakpoints of criu restore are not the first.
func TestCounterUntilTheTreeIsBuilt(t *testing.T) {
	tr := plant(t, 1)
	uffdtest.NeedFunc(t, "perf_event_open", func() error {
		attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_DUMMY, Size: unix.PERF_ATTR_SIZE_VER0}
		fd, err := unix.PerfEventOpen(&attr, 0, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	})
	d := start(t, tr.images, "--background", "none")
	d.awaitCounters(t, 1)
	tr.connect(t)
	tr.say(t, -zombie)
	tr.send(t, 0)
	tr.check(t, 0, 0, 1)
	if n := d.counters(t); n != 1 {
		t.Errorf("%d counters before the tree is built", n)
	}
	tr.say(t, 0x52535446)
	d.awaitCounters(t, 0)
	tr.check(t, 0, 0, 200)
	d.wait(t)
}

// awaitCounters waits until the daemon has so many performance counters.
func (d *daemon) awaitCounters(t *testing.T, want int) {
	t.Helper()
	for end := time.Now().Add(uffdtest.Timeout); d.counters(t) != want; {
		if time.Now().After(end) {
			t.Fatalf("%d counters, want %d", d.counters(t), want)
		}
	}
}

// counters is how many performance counters the daemon has.
func (d *daemon) counters(t *testing.T) (n int) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd/", d.cmd.Process.Pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if to, err := os.Readlink(dir + e.Name()); err == nil && to == "anon_inode:[perf_event]" {
			n++
		}
	}
	return n
}
