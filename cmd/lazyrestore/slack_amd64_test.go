package main

import (
	"errors"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// keepsSlack restores the image of process pid by commands that are started with one timer slack
// or another: the process has it as its default, as if it were made by such a command, and when
// it runs all threads of the command have it too, but for Go's first.
func keepsSlack(t *testing.T, bin string, pid int, img string) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer func() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) }()
	for _, want := range []uint64{50_000, 70_000, 1_000_000} {
		if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(want), 0, 0, 0); err != nil {
			t.Fatal(err)
		}
		restore := restoreBare(t, bin, img)
		tids, err := proc.ReadTasks(restore.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		for i, tid := range tids {
			want := want
			if i == 1 {
				want = 1_000_000
			}
			if slack, err := proc.ReadTimerSlack(tid); slack != want && !errors.Is(err, proc.ErrNoProcess) {
				t.Errorf("of the command's threads %d number %d has a timer slack of %d, want %d (%v)", tids, i, slack, want, err)
			}
		}
		hasDefaultSlack(t, pid, want)
		end(t, pid)
		_ = restore.Wait()

		detach := exec.CommandContext(t.Context(), bin, "restore", "--detach", img)
		if out, err := detach.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		hasDefaultSlack(t, pid, want)
		end(t, pid)
		for deadline := time.Now().Add(20 * time.Second); !errors.Is(unix.Kill(pid, 0), unix.ESRCH); { // until somebody has waited for it
			if time.Now().After(deadline) {
				t.Fatalf("process %d has ended and stays", pid)
			}
		}
	}
}

// hasDefaultSlack looks at the timer slack that a process returns to.
func hasDefaultSlack(t *testing.T, pid int, want uint64) {
	t.Helper()
	if err := proc.WriteTimerSlack(pid, 0); err != nil {
		t.Fatal(err)
	}
	if slack, err := proc.ReadTimerSlack(pid); err != nil || slack != want {
		t.Errorf("the restored process has a default timer slack of %d, want %d (%v)", slack, want, err)
	}
}
