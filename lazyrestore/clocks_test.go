package lazyrestore_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore"
)

// The process comes from a machine that has been up for longer: here one that
// lives in a time namespace with clocks far ahead of ours.
func TestClocksDoNotRunBackwards(t *testing.T) {
	t.Parallel()
	needAll(t)
	s := launch(t, startWith{scene: "--time", exe: "/usr/bin/unshare", args: []string{
		"--monotonic", "10000000", "--boottime", "20000000", must(subjectProgram())(t), "clocks",
	}})
	s.ready(1)
	ours := must(os.Readlink("/proc/self/ns/time"))(t)
	for range 2 { // the second from a time namespace that a restore has made
		s.cycle(plainest, filling)
		theirs := must(os.Readlink(filepath.Join("/proc", strconv.Itoa(s.pid), "ns/time")))(t)
		if theirs == ours {
			t.Error("it has no time namespace of its own")
		}
	}
	s.release()
	s.well()
}

// Where the clocks have gone on by themselves, there is no time namespace.
func TestNoTimeNamespaceWithoutNeed(t *testing.T) {
	t.Parallel()
	s := start(t, "clocks")
	s.cycle(plainest, filling)
	theirs := must(os.Readlink(filepath.Join("/proc", strconv.Itoa(s.pid), "ns/time")))(t)
	if ours := must(os.Readlink("/proc/self/ns/time"))(t); theirs != ours {
		t.Errorf("time namespace %s, ours is %s", theirs, ours)
	}
	s.release()
	s.well()
}

// coredump_filter can be set in /proc only.
func TestCoreDumpFilterSurvives(t *testing.T) {
	t.Parallel()
	s := start(t, "look", "1")
	file := filepath.Join("/proc", strconv.Itoa(s.pid), "coredump_filter")
	if err := os.WriteFile(file, []byte("0x7b"), 0); err != nil {
		t.Fatal(err)
	}
	s.cycle(lazyrestore.CheckpointOptions{}, filling)
	if have := must(os.ReadFile(file))(t); strings.TrimSpace(string(have)) != "0000007b" {
		t.Errorf("coredump_filter %q, want 0x7b", have)
	}
	s.release()
	s.well()
}
