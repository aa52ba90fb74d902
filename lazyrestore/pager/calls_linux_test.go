package pager

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// What a thread is about to tell that it has left is what its call says.
func TestLeavesOfCalls(t *testing.T) {
	for _, c := range []struct {
		name, line string
		leaves     []leave
		runs       bool
	}{
		{name: "it runs", line: "running\n", runs: true},
		{name: "gone", line: ""},
		{name: "no call", line: "-1 0x7ffc 0x7f00\n"},
		{name: "short", line: "11 0x1000 0x1000\n"},
		{name: "read", line: "0 0x3000 0x1000 0x1000 0x0 0x0 0x0 0x7ffc 0x7f00\n"},
		{name: "munmap", line: "11 0x1000 0x1001 0x0 0x0 0x0 0x0 0x7ffc 0x7f00\n", leaves: []leave{{numbered(1, 3), false, 0}}},
		{name: "munmap within a page", line: "11 0x1001 0x1000 0x0 0x0 0x0 0x0 0x7ffc 0x7f00\n"},
		{name: "munmap of nothing", line: "11 0x1000 0x0 0x0 0x0 0x0 0x0 0x7ffc 0x7f00\n"},
		{name: "munmap of too much", line: "11 0x1000 0xfffffffffffff000 0x0 0x0 0x0 0x0 0x7ffc 0x7f00\n"},
		{name: "mremap", line: "25 0x1000 0x2000 0x2000 0x3 0x9000 0x0 0x7ffc 0x7f00\n", leaves: []leave{{numbered(1, 3), true, 0}}},
		{name: "mremap and grow", line: "25 0x1000 0x2000 0x3001 0x1 0x0 0x0 0x7ffc 0x7f00\n", leaves: []leave{{numbered(1, 3), true, 0}}},
		{name: "mremap of a copy", line: "25 0x1000 0x2000 0x2000 0x5 0x0 0x0 0x7ffc 0x7f00\n"},
		{name: "mremap that shrinks", line: "25 0x1000 0x3000 0x800 0x1 0x0 0x0 0x7ffc 0x7f00\n", leaves: []leave{{numbered(2, 4), false, 0}}},
		{
			name: "mremap that shrinks and moves", line: "25 0x1000 0x3000 0x800 0x3 0x9000 0x0 0x7ffc 0x7f00\n",
			leaves: []leave{{numbered(2, 4), false, 0}, {numbered(1, 2), true, 0}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			call, asleep := parseCall(c.line)
			if asleep == c.runs {
				t.Errorf("asleep is %v", asleep)
			}
			if diff := cmp.Diff(c.leaves, call.leaves(), cmp.AllowUnexported(leave{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Only who waits for its event to be read is in a call that counts: whoever is stopped or
// traced on its way out shows one that has ended.
func TestCallsByState(t *testing.T) {
	for _, c := range []struct {
		state  string
		nr     int
		asleep bool
	}{
		{"D (disk sleep)", unix.SYS_MUNMAP, true},
		{"R (running)", unix.SYS_MUNMAP, false},
		{"S (sleeping)", -1, true},
		{"T (stopped)", -1, true},
		{"t (tracing stop)", -1, true},
	} {
		t.Run(c.state, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range map[string]string{
				"syscall": "11 0x1000 0x1000 0x0 0x0 0x0 0x0 0x7ffc 0x7f00\n",
				"stat":    "7 (a) D 1 ( R) " + c.state[:1] + " 1 7 7 0 -1\n",
			} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			call, asleep, err := callOf(dir)
			if err != nil || asleep != c.asleep || asleep && call.nr != c.nr {
				t.Errorf("call %d, asleep %v, %v", call.nr, asleep, err)
			}
		})
	}
}

// A look that cannot be had is not asked for again and again: a thread that is gone is none, and any
// other error ends it.
func TestLooksThatFail(t *testing.T) {
	for _, c := range []struct {
		name   string
		make   func(dir string) error
		failed bool
	}{
		{"gone", func(string) error { return nil }, false},
		{"refused", func(dir string) error { return os.Mkdir(filepath.Join(dir, "syscall"), 0o700) }, true},
		{"not counted", func(dir string) error {
			return errors.Join(os.WriteFile(filepath.Join(dir, "syscall"), []byte("running\n"), 0o600),
				os.WriteFile(filepath.Join(dir, "schedstat"), []byte("0 0 0\n"), 0o600))
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := lookOut{dir: t.TempDir() + "/", ran: map[string]*runTime{}}
			defer l.close()
			const tid = "999999999" // nobody's
			if err := os.Mkdir(l.dir+tid, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := c.make(l.dir + tid); err != nil {
				t.Fatal(err)
			}
			var err error
			if l.tasks, err = os.ReadDir(l.dir); err != nil {
				t.Fatal(err)
			}
			if left, err := l.again(true); (err != nil) != c.failed || !c.failed && left > 0 {
				t.Errorf("%d are left: %v", left, err)
			}
		})
	}
}
