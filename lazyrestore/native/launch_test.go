package native

import (
	"context"
	"errors"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// Who waits for a thread that does not stop waits until the limit, or until it is told to
// end, and the process is gone then.
func TestThreadsThatDoNotStop(t *testing.T) {
	uffdtest.Need(t, "ptrace")
	told := errors.New("told to end")
	for _, tt := range []struct {
		want  error
		limit time.Duration
		tell  bool
	}{{errNoStop, 50 * time.Millisecond, false}, {told, time.Hour, true}, {nil, time.Hour, false}} {
		cmd := exec.Command("sleep", "1000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		pid := cmd.Process.Pid
		p := &Process{PID: pid, tracer: proc.TracerHere()}
		var err error
		if p.PIDFD, err = unix.PidfdOpen(pid, 0); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		if tt.tell {
			time.AfterFunc(50*time.Millisecond, func() { cancel(told) })
		}
		err = p.within(ctx, tt.limit, func() error {
			if err := p.tracer.Hold(pid, []int{pid}); err != nil || tt.want == nil {
				return err
			}
			_, err := p.tracer.Wait(pid, 0)
			return err
		})
		if !errors.Is(err, tt.want) {
			t.Errorf("%v, want %v", err, tt.want)
		}
		if err := unix.Kill(pid, 0); tt.want == nil && err != nil {
			t.Errorf("the process: %v", err)
		}
		p.tracer.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		unix.Close(p.PIDFD)
		cancel(nil)
	}
}

// A Run that fails has given nothing up that Kill needs: the process may live.
func TestRunThatFailsLeavesTheProcessToKill(t *testing.T) {
	program, err := unix.Mmap(-1, 0, page.Size, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	p := &Process{PID: 1, PIDFD: -1, tracer: proc.TracerHere(), program: program}
	failed := make(chan error)
	go func() { failed <- p.Run(func() {}) }()
	if err := <-failed; !errors.Is(err, proc.ErrWrongThread) {
		t.Errorf("Run on another thread = %v, want ErrWrongThread", err)
	}
	if err := p.tracer.Do(func() error { return nil }); err != nil {
		t.Errorf("the tracer is of no use after it: %v", err)
	}
	if err := unix.Munmap(program); err != nil {
		t.Errorf("the program is not there any more: %v", err)
	}
	p.Kill()
}
