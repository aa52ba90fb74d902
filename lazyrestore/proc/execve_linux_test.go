package proc

import (
	"errors"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// TestSeizeAmidExecve seizes a process of which now and then one thread calls
// execve, and ends all others by that: also those that are seized already.
func TestSeizeAmidExecve(t *testing.T) {
	uffdtest.Need(t, "ptrace")
	runtime.LockOSThread() // with which the process ends
	defer runtime.UnlockOSThread()
	cmd := exec.Command(compile(t, "execs.c"), "200", "3000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	tr := newTracer(t)
	for i := range 100 {
		begin := time.Now()
		tids, err := tr.SeizeAll(t.Context(), cmd.Process.Pid)
		if err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		for _, tid := range tids {
			if _, err := tr.GetRegs(tid); err != nil {
				t.Errorf("round %d: %v", i, err)
			}
		}
		if now, err := ReadTasks(cmd.Process.Pid); err != nil || len(now) != len(tids) {
			t.Errorf("round %d: it has %d threads, and %d are traced; %v", i, len(now), len(tids), err)
		}
		if err := tr.DetachAll(); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		if took := time.Since(begin); took > patience/2 {
			t.Fatalf("round %d took %v", i, took)
		}
	}
}

// TestSeizeLeaderDying seizes a process whose first thread is about to die by the
// execve of another one, and was still traced by the same tracer when that let it go.
func TestSeizeLeaderDying(t *testing.T) {
	uffdtest.Need(t, "ptrace")
	runtime.LockOSThread() // with which the process ends
	defer runtime.UnlockOSThread()
	cmd := exec.Command(compile(t, "execs.c"), "0", "3000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	pid := cmd.Process.Pid
	tr := newTracer(t)
	dying := 0
	for i := 0; i < 200 && dying < 5; i++ {
		// Of two threads. All in one Do: the tracer's thread, which does not sleep, keeps
		// the first one from the only processor on which that may die.
		err := tr.Do(func() error {
			tids, err := tr.SeizeAll(t.Context(), pid)
			if err != nil || len(tids) != 2 {
				return errors.Join(err, tr.DetachAll())
			}
			besideTracer(t, tr, pid)
			if err := tr.Detach(tids[1]); err != nil {
				return err
			}
			var regs Regs
			for begin := time.Now(); getRegs(pid, &regs) == nil; {
				if time.Since(begin) > 10*time.Second {
					return errors.New("no execve")
				}
			}
			if err := tr.DetachAll(); err != nil {
				return err
			}
			if s, err := ReadStatus(pid); err == nil && s.State != 'Z' && s.TracerPid == tr.tid {
				dying++
			}
			if _, err := tr.SeizeAll(t.Context(), pid); err != nil {
				return err
			}
			if tracerOf(pid) != tr.tid {
				return errors.New("what has called execve is not traced")
			}
			return tr.DetachAll()
		})
		if err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
	}
	if dying == 0 {
		t.Error("no first thread was met that was about to die")
	}
}
