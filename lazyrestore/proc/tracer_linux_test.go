package proc

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

func newTracer(t *testing.T) *Tracer {
	t.Helper()
	tr, err := NewTracer()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tr.Close(); err != nil {
			t.Errorf("close the tracer: %v", err)
		}
	})
	return tr
}

func TestTracerDo(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	tr, err := NewTracer()
	if err != nil {
		t.Fatal(err)
	}
	var tids [3]int
	for i := range tids {
		err := tr.Do(func() error {
			return tr.Do(func() error { // nested: at once
				tids[i] = unix.Gettid()
				return nil
			})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if tids[0] != tids[1] || tids[0] != tids[2] || tids[0] == unix.Getpid() {
		t.Errorf("threads %v", tids)
	}
	want := errors.New("from f")
	if err := tr.Do(func() error { return want }); !errors.Is(err, want) {
		t.Errorf("error %v", err)
	}
	for range 2 {
		if err := tr.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := tr.Do(func() error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if unix.Tgkill(unix.Getpid(), tids[0], 0) == nil {
		// The thread's end comes a moment after its goroutine's.
		deadline := time.Now().Add(20 * time.Second)
		for unix.Tgkill(unix.Getpid(), tids[0], 0) == nil {
			if time.Now().After(deadline) {
				t.Fatal("the thread lives on")
			}
			runtime.Gosched()
		}
	}
}

func TestSeizeAll(t *testing.T) {
	uffdtest.Need(t, "ptrace")
	p := startTarget(t, compile(t, "target.c"), "avx", "sleep", "futex", "pipe", "handler", "sleep", "avx", "futex")
	tr := newTracer(t)
	for range 50 {
		tids, err := tr.SeizeAll(t.Context(), p.pid())
		if err != nil {
			t.Fatal(err)
		}
		if len(tids) != p.n || tids[0] != p.pid() {
			t.Fatalf("threads %v of %d", tids, p.pid())
		}
		before := p.count()
		for _, tid := range tids {
			s, err := ReadStatus(tid)
			if err != nil || s.State != 't' || processOf(s.TracerPid) != os.Getpid() {
				t.Fatalf("thread %d: state %c, tracer %d, %v", tid, s.State, s.TracerPid, err)
			}
			r, err := tr.GetRegs(tid)
			if err != nil || r[CS] != 0x33 || r[RIP] == 0 {
				t.Fatalf("registers %x, %v", r, err)
			}
		}
		if after := p.count(); !slices.Equal(before, after) {
			t.Fatalf("stopped threads went on: %v, %v", before, after)
		}
		if err := tr.DetachAll(); err != nil {
			t.Fatal(err)
		}
	}
	p.waitProgress()
}

func TestSeizeTaskState(t *testing.T) {
	uffdtest.Need(t, "ptrace")
	p := startTarget(t, compile(t, "target.c"), "pause", "pipe")
	p.waitThreads()
	tr := newTracer(t)
	tids, err := tr.SeizeAll(t.Context(), p.pid())
	if err != nil {
		t.Fatal(err)
	}
	tid := tids[1]
	x, err := tr.GetXState(tid)
	if err != nil || len(x) < 576 {
		t.Fatalf("%d bytes of extended registers, %v", len(x), err)
	}
	if err := tr.SetXState(tid, x); err != nil {
		t.Error(err)
	}
	if err := tr.SetXState(tid, x[:100]); err == nil {
		t.Error("a cut extended state was taken")
	}
	const mask = 1<<(unix.SIGUSR1-1) | 1<<(unix.SIGUSR2-1) | 1<<(unix.SIGTERM-1)
	if err := tr.SetSigMask(tid, mask); err != nil {
		t.Fatal(err)
	}
	if m, err := tr.GetSigMask(tid); err != nil || m != mask {
		t.Errorf("mask %#x, %v", m, err)
	}
	for _, sig := range []unix.Signal{unix.SIGUSR2, unix.SIGUSR1} {
		if err := unix.Tgkill(p.pid(), tid, sig); err != nil {
			t.Fatal(err)
		}
	}
	pending, err := tr.PeekSignals(tid, false)
	if err != nil || len(pending) != 2 || pending[0][0] != byte(unix.SIGUSR2) || pending[1][0] != byte(unix.SIGUSR1) {
		t.Errorf("pending %v, %v", pending, err)
	}
	if shared, err := tr.PeekSignals(tid, true); err != nil || len(shared) != 0 {
		t.Errorf("pending for the process %v, %v", shared, err)
	}
	if r, err := tr.GetRSeq(tid); err != nil || r.Addr == 0 || r.Len < 20 || r.Sig != 0x53053053 {
		t.Errorf("rseq %+v, %v", r, err) // glibc registers it
	}
	if head, n, err := RobustList(tid); err != nil || head == 0 || n != 24 {
		t.Errorf("robust list %#x, %d, %v", head, n, err)
	}
	if arch, err := tr.SyscallInfo(tid); err != nil || arch != 0xc000003e {
		t.Errorf("architecture %#x, %v", arch, err)
	}
	if on, _, err := tr.SyscallDispatch(tid); err != nil || on {
		t.Errorf("dispatch %v, %v", on, err)
	}
}

func TestSeizeRefuses(t *testing.T) {
	uffdtest.Need(t, "ptrace")
	tr := newTracer(t)
	p := startTarget(t, compile(t, "target.c"), "pause")
	tids, err := ReadTasks(p.pid())
	if err != nil {
		t.Fatal(err)
	}
	zombie := exec.Command("true")
	if err := zombie.Start(); err != nil {
		t.Fatal(err)
	}
	defer zombie.Wait()
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, zombie.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		pid  int
		want error
	}{
		{"no process", 1<<22 + 1, ErrNoProcess},
		{"thread", tids[1], ErrNotProcess},
		{"self", os.Getpid(), ErrSelf},
		{"zombie", zombie.Process.Pid, ErrZombie},
	} {
		if _, err := tr.SeizeAll(t.Context(), tt.pid); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	if s, err := ReadStatus(2); err == nil && s.Kthread {
		if _, err := tr.SeizeAll(t.Context(), 2); !errors.Is(err, ErrKernelThread) {
			t.Errorf("kernel thread: %v", err)
		}
	}
	// Traced by another tracer: the whole, and a single thread of it.
	other := newTracer(t)
	for _, n := range []int{1, 2} {
		if err := other.SeizeThreads(p.pid(), tids[2-n:]); err != nil {
			t.Fatal(err)
		}
		var traced *TracedError
		if _, err := tr.SeizeAll(t.Context(), p.pid()); !errors.As(err, &traced) || traced.Tracer != os.Getpid() {
			t.Errorf("traced: %v", err)
		}
		if left := tr.Tasks(); len(left) != 0 {
			t.Errorf("threads %v were left behind", left)
		}
		if err := other.DetachAll(); err != nil {
			t.Fatal(err)
		}
	}
	p.waitProgress(1)
	told := errors.New("told to end")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(told)
	if _, err := tr.SeizeAll(ctx, p.pid()); !errors.Is(err, told) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestSeizeMany seizes a process that makes and ends threads all the time.
func TestSeizeMany(t *testing.T) {
	uffdtest.Need(t, "ptrace")
	cmd := exec.Command(compile(t, "churn.c"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	tr := newTracer(t)
	for range 100 {
		tids, err := tr.SeizeAll(t.Context(), cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		now, err := ReadTasks(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		for _, tid := range now {
			s, err := ReadStatus(tid)
			if err == nil && s.State != 't' && s.State != 'Z' && s.State != 'X' {
				t.Fatalf("thread %d of %v is in state %c", tid, tids, s.State)
			}
		}
		if err := tr.DetachAll(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSeizeStopped(t *testing.T) {
	uffdtest.Need(t, "ptrace")
	p := startTarget(t, compile(t, "target.c"), "avx", "sleep")
	if err := unix.Kill(p.pid(), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, p.pid(), &info, unix.WSTOPPED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	tr := newTracer(t)
	for range 3 {
		if _, err := tr.SeizeAll(t.Context(), p.pid()); err != nil {
			t.Fatal(err)
		}
		if err := tr.DetachAll(); err != nil {
			t.Fatal(err)
		}
		// It goes back to being stopped.
		if s, err := ReadStatus(p.pid()); err != nil || s.State != 'T' {
			if err := unix.Waitid(unix.P_PID, p.pid(), &info, unix.WSTOPPED|unix.WNOWAIT, nil); err != nil {
				t.Fatalf("state %c, %v", s.State, err)
			}
		}
	}
	if err := unix.Kill(p.pid(), unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	p.waitProgress()
}

func TestStart(t *testing.T) {
	uffdtest.Need(t, "ptrace")
	tr := newTracer(t)
	exe, err := unix.Open("/bin/sleep", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(exe)
	want := freePID(t)
	if err := tr.Start(StartOptions{PID: want, Exec: exe, NewSession: true, Args: []string{"sleep", "100"}}); err != nil {
		t.Fatal(err)
	}
	pidfd := tr.PIDFD()
	defer unix.Close(pidfd)
	s, err := ReadStat(want)
	if err != nil || tr.PID() != want || s.Session != want {
		t.Errorf("%+v, %v", s, err)
	}
	if err := unix.PidfdSendSignal(pidfd, unix.SIGSTOP, nil, 0); err != nil {
		t.Fatal(err)
	}
	if sig, err := tr.WaitStop(want); err != nil || sig != unix.SIGSTOP {
		t.Fatalf("stop %v, %v", sig, err)
	}
	vmas, err := ReadMaps(want)
	if err != nil {
		t.Fatal(err)
	}
	insn, err := SyscallInsn(want, vmas)
	if err != nil {
		t.Fatal(err)
	}
	if ret, err := tr.StepSyscall(want, insn, unix.SYS_GETPID); err != nil || int(ret) != want {
		t.Errorf("getpid %d, %v", ret, err)
	}
	ret, err := tr.StepSyscall(want, insn, unix.SYS_CLOSE, 9999)
	if errno, failed := Errno(ret); err != nil || !failed || errno != syscall.EBADF {
		t.Errorf("close %d, %v", ret, err)
	}
	if err := tr.KillAll(); err != nil {
		t.Error(err)
	}
	if err := unix.Kill(want, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("after KillAll: %v", err)
	}
}

func TestStepSyscall(t *testing.T) {
	uffdtest.Need(t, "ptrace")
	p := startTarget(t, compile(t, "target.c"), "avx", "sleep", "futex", "pipe", "handler")
	tr := newTracer(t)
	vmas, err := ReadMaps(p.pid())
	if err != nil {
		t.Fatal(err)
	}
	insn, err := SyscallInsn(p.pid(), vmas)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		tids, err := tr.SeizeAll(t.Context(), p.pid())
		if err != nil {
			t.Fatal(err)
		}
		for _, tid := range tids {
			if ret, err := tr.StepSyscall(tid, insn, unix.SYS_GETTID); err != nil || int(ret) != tid {
				t.Fatalf("gettid in %d: %d, %v", tid, ret, err)
			}
		}
		if err := tr.DetachAll(); err != nil {
			t.Fatal(err)
		}
	}
	p.waitProgress()
}

// A process that is killed while all of its threads are traced ends, although
// the tracer lives on: it has waited for the threads that it could not let go.
func TestKilledBeforeDetach(t *testing.T) {
	uffdtest.Need(t, "ptrace")
	p := startTarget(t, compile(t, "target.c"), "spin", "spin", "spin")
	tr := TracerHere()
	if _, err := tr.SeizeAll(context.Background(), p.pid()); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := tr.DetachAll(); err != nil {
		t.Error(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = p.cmd.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("it does not end")
	}
	_ = tr.Close()
}

// A process of which a thread is held is killed with its tracer, whatever that
// has let go of it; and one of which no thread is held is not.
func TestHold(t *testing.T) {
	uffdtest.Need(t, "ptrace")
	// A target ends with the thread that started it: not with the tracer's here.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for _, held := range []bool{true, false} {
		p := startTarget(t, compile(t, "target.c"), "avx", "sleep", "sleep")
		tids, err := ReadTasks(p.pid())
		if err != nil {
			t.Fatal(err)
		}
		hold := tids[1:]
		tr := newTracer(t)
		if err := tr.Hold(p.pid(), hold); err != nil {
			t.Fatal(err)
		}
		if !held {
			if err := errors.Join(tr.HaltHeld(hold), tr.DetachStopped()); err != nil {
				t.Fatal(err)
			}
			if left := tr.Tasks(); len(left) > 0 {
				t.Errorf("%d are still traced", left)
			}
		}
		clear(tr.tasks) // its thread ends, as by a SIGKILL
		if err := tr.Close(); err != nil {
			t.Fatal(err)
		}
		if !held {
			p.waitProgress()
			continue
		}
		_ = p.cmd.Wait()
		if ws, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != unix.SIGKILL {
			t.Errorf("it ended with %v, not by SIGKILL", p.cmd.ProcessState)
		}
	}
}

// TestContinuedWhileSeized has SIGCONT sent to a process that was stopped, of which
// nothing tells where the process stands still, be the signal pending or got by a thread.
func TestContinuedWhileSeized(t *testing.T) {
	uffdtest.Need(t, "ptrace")
	bin := compile(t, "target.c")
	for _, got := range []bool{false, true} {
		p := startTarget(t, bin, "sleep")
		if err := unix.Kill(p.pid(), unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		var info unix.Siginfo
		if err := unix.Waitid(unix.P_PID, p.pid(), &info, unix.WSTOPPED, nil); err != nil {
			t.Fatal(err)
		}
		tr := newTracer(t)
		tids, err := tr.SeizeAll(t.Context(), p.pid())
		if err != nil {
			t.Fatal(err)
		}
		if stopped, err := tr.GroupStopped(p.pid()); !stopped || err != nil {
			t.Errorf("it is not known that the process is stopped: %v", err)
		}
		if err := unix.Kill(p.pid(), unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
		if got {
			takeSignal(t, tr, tids[1], unix.SIGCONT)
		}
		pending, err := tr.PeekSignals(p.pid(), true)
		if err != nil || got == (len(pending) > 0) {
			t.Errorf("%d signals are pending, %v", len(pending), err)
		}
		if stopped, err := tr.GroupStopped(p.pid()); stopped || err != nil {
			t.Errorf("the process counts as stopped after SIGCONT: %v, %v; a thread having got it: %v", stopped, err, got)
		}
		if err := tr.DetachAll(); err != nil {
			t.Fatal(err)
		}
		p.waitProgress()
	}
}

// takeSignal has a stopped thread get a signal that is pending, and stop again.
func takeSignal(t *testing.T, tr *Tracer, tid int, sig unix.Signal) {
	t.Helper()
	for got := unix.Signal(0); ; {
		if err := tr.Cont(tid, got); err != nil {
			t.Fatal(err)
		}
		stop, err := tr.Wait(tid, 20*time.Second)
		switch {
		case err != nil:
			t.Fatal(err)
		case got != 0 && stop.Kind != StopSignal:
			return
		case stop.Kind == StopSignal && stop.Signal == sig:
			if err := tr.Interrupt(tid); err != nil {
				t.Fatal(err)
			}
			got = sig
		}
	}
}
