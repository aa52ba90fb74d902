package proc

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// TestEndedWhileItIsAsked has a process end that was stopped: it cannot be told any more whether it is.
func TestEndedWhileItIsAsked(t *testing.T) {
	uffdtest.Need(t, "ptrace")
	p := startTarget(t, compile(t, "target.c"))
	if err := unix.Kill(p.pid(), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, p.pid(), &info, unix.WSTOPPED, nil); err != nil {
		t.Fatal(err)
	}
	tr := newTracer(t)
	if _, err := tr.SeizeAll(t.Context(), p.pid()); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(p.pid(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if stopped, err := tr.GroupStopped(p.pid()); err == nil {
		t.Errorf("the process that was killed counts as stopped: %v", stopped)
	}
}
