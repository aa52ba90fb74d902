package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// keepsSlack restores the image of process pid by commands that are started with one timer slack
// or another: the process has it as its default, as if it were made by such a command, and when
// it runs the command's first thread has it too; and so has what helps it to connect.
func keepsSlack(t *testing.T, bin string, pid int, img string) {
	t.Helper()
	const helper = "#!/bin/sh\nread -r slack </proc/$$/timerslack_ns\necho begun with $slack ns >&2\n"
	if err := os.WriteFile(bin+"-connect", []byte(helper), 0o700); err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer func() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) }()
	// So that a process that was detached and ends is gone at once, whatever the first process of this place does.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) }()
	for _, want := range []uint64{50_000, 70_000, 1_000_000} {
		if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(want), 0, 0, 0); err != nil {
			t.Fatal(err)
		}
		restore := restoreBare(t, bin, img)
		if slack, err := proc.ReadTimerSlack(restore.Process.Pid); err != nil || slack != want {
			t.Errorf("the command's first thread has a timer slack of %d, want %d (%v)", slack, want, err)
		}
		hasDefaultSlack(t, pid, want)
		end(t, pid)
		_ = restore.Wait()
		sysmonHasIt(t, bin, pid, img, want)

		helped := exec.CommandContext(t.Context(), bin, "restore", "tcp://name.invalid/image")
		if out, err := helped.CombinedOutput(); !bytes.Contains(out, fmt.Appendf(nil, "begun with %d ns", want)) {
			t.Errorf("the helper was not started with a timer slack of %d: %v\n%s", want, err, out)
		}

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
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // ECHILD: the pager is there, which does that
		}
	}
}

// sysmonHasIt restores by a command that runs one goroutine at a time: its second thread, sysmon, has
// the command's timer slack when the process runs.
func sysmonHasIt(t *testing.T, bin string, pid int, img string, want uint64) {
	t.Helper()
	const procs = "GOMAXPROCS"
	before, set := os.LookupEnv(procs)
	_ = os.Setenv(procs, "1")
	restore := restoreBare(t, bin, img)
	if _ = os.Setenv(procs, before); !set {
		_ = os.Unsetenv(procs)
	}
	tids, err := proc.ReadTasks(restore.Process.Pid)
	if err != nil || len(tids) < 2 {
		t.Fatalf("the command's threads: %d, %v", tids, err)
	}
	if slack, err := proc.ReadTimerSlack(tids[1]); err != nil || slack != want {
		t.Errorf("sysmon has a timer slack of %d, want %d (%v)", slack, want, err)
	}
	end(t, pid)
	_ = restore.Wait()
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
