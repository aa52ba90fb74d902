package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/lazypages"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// As long as the tree is being built there is a performance counter of a task, so that
// the breakpoints of criu restore are not the first.
func TestCounterUntilTheTreeIsBuilt(t *testing.T) {
	tr := plant(t, 1)
	needCounter(t)
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
func (d *daemon) counters(t *testing.T) int {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", d.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(maps), "anon_inode:[perf_event]")
}

func needCounter(t *testing.T) {
	t.Helper()
	uffdtest.NeedFunc(t, "perf_event_open", func() error {
		fd, err := lazypages.OpenCounter(0)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	})
}

// The counter goes with a daemon that is killed, and is not its keeper's.
func TestCounterGoesWithTheDaemon(t *testing.T) {
	tr := plant(t, 2)
	needCounter(t)
	d := start(t, tr.images, "--background", "none")
	d.awaitCounters(t, 1)
	tr.connect(t)
	tr.send(t, 0)
	tr.awaitFirst(t)
	d.kill(t)
	b, err := os.ReadFile(filepath.Join(tr.images, lazypages.StateName))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`"keepers":\[{"pid":(\d+),`).FindStringSubmatch(string(b))
	if m == nil {
		t.Fatalf("state: %s", b)
	}
	maps, err := os.ReadFile("/proc/" + m[1] + "/maps")
	if err != nil {
		t.Fatal(err)
	}
	held, err := filepath.Glob("/proc/" + m[1] + "/fd/*")
	if err != nil || len(held) == 0 {
		t.Fatalf("the keeper has %v, %v", held, err)
	}
	for _, fd := range held {
		to, _ := os.Readlink(fd)
		maps = append(maps, to...)
	}
	if strings.Contains(string(maps), "[perf_event]") {
		t.Error("the keeper has the counter of the daemon that was killed")
	}
	tr.complete(t, start(t, tr.images, "--resume"))
}
