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
			task := filepath.Join(t.TempDir(), "999999999") // nobody's
			if err := os.Mkdir(task, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := c.make(task); err != nil {
				t.Fatal(err)
			}
			l := lookOut{tasks: []string{task}, ran: map[string]*runTime{}}
			defer l.close()
			if left, err := l.again(true); (err != nil) != c.failed || !c.failed && left > 0 {
				t.Errorf("%d are left: %v", left, err)
			}
		})
	}
}

// A look goes on until all were seen, though one was seen in a call, whether at one process or at all.
func TestLooksGoOn(t *testing.T) {
	for _, all := range []bool{false, true} {
		write := func(task, call string) {
			t.Helper()
			if err := os.WriteFile(filepath.Join(task, "syscall"), []byte(call), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		l := lookOut{all: all, ran: map[string]*runTime{}}
		for _, call := range []string{"28 0x1000 0x1000 0x4 0x0 0x0 0x0 0x7ffc 0x7f00\n", "running\n"} {
			task := t.TempDir()
			write(task, call)
			if err := os.WriteFile(filepath.Join(task, "stat"), []byte("7 (a) D 1 7 7 0 -1\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			l.tasks = append(l.tasks, task)
		}
		late, rounds := l.tasks[1], 0
		need := func() bool {
			if rounds++; rounds == 3 { // it has come to sleep
				write(late, "28 0x8000 0x1000 0x9 0x0 0x0 0x0 0x7ffc 0x7f00\n")
			}
			return true
		}
		if err := l.look(t.Context(), &patience{}, need); err != nil || rounds != 3 {
			t.Errorf("all %v: %v in round %d", all, err, rounds)
		}
		want := []advice{{numbered(1, 2), unix.MADV_DONTNEED}, {numbered(8, 9), unix.MADV_REMOVE}}
		if diff := cmp.Diff(want, l.advice, cmp.AllowUnexported(advice{})); diff != "" {
			t.Error(diff)
		}
	}
}
