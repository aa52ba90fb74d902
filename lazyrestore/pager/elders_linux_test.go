package pager

import (
	"os/exec"
	"slices"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
	"golang.org/x/sys/unix"
)

// A look at all passes over who was there before, by id and inode: with the id alone it would pass over who has got that since.
func TestElders(t *testing.T) {
	start := func() int {
		cmd := exec.Command("sleep", "60")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		return cmd.Process.Pid
	}
	startOf := func(pid int) uint64 {
		stat, err := proc.ReadStat(pid)
		if err != nil {
			t.Fatal(err)
		}
		return stat.StartTime
	}
	old, young := start(), start()
	for startOf(young) == startOf(old) { // a tick of the clock
		young = start()
	}
	check := func(what string, e *elders, want ...int) {
		t.Helper()
		pids, err := e.others()
		if err != nil {
			t.Fatal(err)
		}
		for _, pid := range []int{old, young} {
			if got := slices.Contains(pids, pid); got != slices.Contains(want, pid) {
				t.Errorf("%s: process %d is looked at: %v", what, pid, got)
			}
		}
	}
	e := &elders{began: startOf(young)}
	check("at first", e, young)
	check("again", e, young)
	e.known[young] = e.known[old] // as of one that had the id before
	check("with another inode", e, young)
	e.began = startOf(old)
	check("begun with it", e, old, young)
	check("nobody is one", &elders{none: true}, old, young)
	if began, err := beganItself(); err != nil || began > startOf(old) {
		t.Errorf("this process began at %d, its child at %d, %v", began, startOf(old), err)
	}
}

// A forked child is none: what it drops of shared memory keeps its content.
func TestElderIsNoChild(t *testing.T) {
	s := serveChild(t, setting{child: uffdtest.Options{Pages: 64, Kind: uffdtest.Shmem}, pager: Options{Background: None}})
	child, pid := s.Fork(t)
	pid.Wait(t)
	for n := range 8 { // also once all that is older is known
		child.Madvise(s.Addr(4*n), 4*page.Size, unix.MADV_DONTNEED).Wait(t)
	}
	s.check(t, child)
	child.Exit(0)
	s.check(t, s.Thread)
}
