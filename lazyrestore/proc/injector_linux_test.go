package proc

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// inject gives a target with all threads seized, and an injector in it.
func inject(t *testing.T, tr *Tracer, pid int) ([]int, *Injector) {
	t.Helper()
	tids, err := tr.SeizeAll(t.Context(), pid)
	if err != nil {
		t.Fatal(err)
	}
	vmas, err := ReadMaps(pid)
	if err != nil {
		t.Fatal(err)
	}
	in, err := tr.NewInjector(pid, vmas, InjectorOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return tids, in
}

// allKinds are threads of every kind of the target.
var allKinds = []string{"avx", "sleep", "futex", "pipe", "handler", "mask", "avx", "pause"}

// pauses is the index of the thread among them that counts nothing.
const pauses = 8

func TestInjectorRun(t *testing.T) {
	uffdtest.Need(t, "ptrace")
	p := startTarget(t, compile(t, "target.c"), allKinds...)
	tr := newTracer(t)
	tids, in := inject(t, tr, p.pid())
	for _, tid := range tids {
		addr, view, err := in.Arena().Alloc(24, 8)
		if err != nil {
			t.Fatal(err)
		}
		got, err := in.Run(tid, []Call{
			{NR: unix.SYS_GETTID},
			{NR: unix.SYS_CLOSE | MayFail, Args: [6]uint64{9999}},
			{NR: unix.SYS_SIGALTSTACK, Args: [6]uint64{0, addr}},
			{NR: unix.SYS_GETPID},
		}, nil)
		want := []int64{int64(tid), -int64(unix.EBADF), 0, int64(p.pid())}
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("thread %d: %v, %v; want %v", tid, got, err, want)
		}
		if flags := binary.LittleEndian.Uint32(view[8:]); flags != 2 { // SS_DISABLE
			t.Errorf("thread %d: alternate stack %x", tid, view)
		}
		var call *CallError
		_, err = in.Run(tid, []Call{{NR: unix.SYS_GETPID}, {NR: unix.SYS_CLOSE, Args: [6]uint64{9999}}, {NR: unix.SYS_GETPID}}, nil)
		if !errors.As(err, &call) || call.Index != 1 || call.Errno != syscall.EBADF {
			t.Errorf("a call that fails: %v", err)
		}
	}
	if _, err := in.Run(p.pid(), make([]Call, 10000), nil); err == nil {
		t.Error("a table larger than the arena was taken")
	}
	region := in.Region()
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	vmas, err := ReadMaps(p.pid())
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range vmas {
		if v.Overlaps(region) {
			t.Errorf("the region %s is left behind: %s", region, v.Range)
		}
	}
	if err := tr.DetachAll(); err != nil {
		t.Fatal(err)
	}
	p.waitProgress(pauses)
}

// threadState is all that a tracer sees of a thread.
type threadState struct {
	regs   Regs
	xstate string
	mask   uint64
}

func stateOf(t *testing.T, tr *Tracer, tid int) threadState {
	t.Helper()
	regs, err := tr.GetRegs(tid)
	if err != nil {
		t.Fatal(err)
	}
	x, err := tr.GetXState(tid)
	if err != nil {
		t.Fatal(err)
	}
	// Which components are in their initial state is the processor's own
	// account; their content is in the buffer either way.
	clear(x[xsaveHeader:][:8])
	mask, err := tr.GetSigMask(tid)
	if err != nil {
		t.Fatal(err)
	}
	return threadState{regs, string(x), mask}
}

// TestInjectorLeavesNoTrace injects a thousand times, into threads that look at
// their registers and at the results of their system calls.
func TestInjectorLeavesNoTrace(t *testing.T) {
	uffdtest.Need(t, "ptrace")
	p := startTarget(t, compile(t, "target.c"), allKinds...)
	tr := newTracer(t)
	calls := []Call{{NR: unix.SYS_GETTID}, {NR: unix.SYS_SCHED_YIELD}, {NR: unix.SYS_GETUID}}
	runs := 0
	for runs < 1000 {
		tids, in := inject(t, tr, p.pid())
		for range 3 {
			for _, tid := range tids {
				before := stateOf(t, tr, tid)
				if _, err := in.Run(tid, calls, nil); err != nil {
					t.Fatal(err)
				}
				runs++
				if after := stateOf(t, tr, tid); after != before {
					t.Fatalf("thread %d: registers %x, before %x; mask %#x, before %#x", tid, after.regs, before.regs, after.mask, before.mask)
				}
			}
		}
		if err := in.Close(); err != nil {
			t.Fatal(err)
		}
		if err := tr.DetachAll(); err != nil {
			t.Fatal(err)
		}
	}
	p.waitProgress(pauses)
}

// TestInjectorSignals sends signals while tables run: each must wait, and come
// when the process goes on.
func TestInjectorSignals(t *testing.T) {
	uffdtest.Need(t, "ptrace")
	p := startTarget(t, compile(t, "target.c"), "pause", "avx")
	tr := newTracer(t)
	tids, in := inject(t, tr, p.pid())
	tid := tids[2]
	for _, tt := range []struct {
		name string
		mask uint64
		send []unix.Signal
	}{
		{"blocked, then ours", 1 << (unix.SIGURG - 1), []unix.Signal{unix.SIGURG}},
		{"not blocked", 0, []unix.Signal{unix.SIGURG}},
		{"others", 0, []unix.Signal{unix.SIGUSR2, unix.SIGTERM, unix.SIGURG}},
	} {
		before := stateOf(t, tr, tid)
		if err := tr.SetSigMask(tid, tt.mask); err != nil {
			t.Fatal(err)
		}
		for _, sig := range tt.send {
			if err := unix.Tgkill(p.pid(), tid, sig); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := in.Run(tid, []Call{{NR: unix.SYS_GETTID}}, nil); err != nil || got[0] != int64(tid) {
			t.Fatalf("%s: %v, %v", tt.name, got, err)
		}
		after := stateOf(t, tr, tid)
		if before.mask = tt.mask; after != before {
			t.Errorf("%s: the thread's state changed", tt.name)
		}
		pending, err := tr.PeekSignals(tid, false)
		if err != nil {
			t.Fatal(err)
		}
		var got []unix.Signal
		for _, info := range pending {
			if from := binary.LittleEndian.Uint32(info[16:]); int(from) != os.Getpid() {
				t.Errorf("%s: a signal from process %d", tt.name, from)
			}
			got = append(got, unix.Signal(info[0]))
		}
		slices.Sort(got)
		want := slices.Clone(tt.send)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: pending %v, want %v", tt.name, got, want)
		}
	}
}

// TestInjectorStopped injects into a process that is stopped by a signal, which
// it must be afterwards.
func TestInjectorStopped(t *testing.T) {
	uffdtest.Need(t, "ptrace")
	p := startTarget(t, compile(t, "target.c"), "avx", "sleep")
	tr := newTracer(t)
	for range 20 {
		tids, in := inject(t, tr, p.pid())
		if err := unix.Kill(p.pid(), unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		for _, tid := range tids {
			if _, err := in.Run(tid, []Call{{NR: unix.SYS_GETTID}}, nil); err != nil {
				t.Fatal(err)
			}
		}
		if stopped, err := tr.GroupStopped(p.pid()); !stopped || err != nil {
			t.Errorf("it is not known that the process was stopped meanwhile: %v", err)
		}
		if err := in.Close(); err != nil {
			t.Fatal(err)
		}
		if err := tr.DetachAll(); err != nil {
			t.Fatal(err)
		}
		var info unix.Siginfo
		if err := unix.Waitid(unix.P_PID, p.pid(), &info, unix.WSTOPPED, nil); err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(p.pid(), unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	p.waitProgress()
}

func TestInjectorKilled(t *testing.T) {
	uffdtest.Need(t, "ptrace")
	p := startTarget(t, compile(t, "target.c"), "pause")
	tr := newTracer(t)
	tids, in := inject(t, tr, p.pid())
	var exit *ExitError
	_, err := in.Run(tids[1], []Call{{NR: unix.SYS_KILL, Args: [6]uint64{uint64(p.pid()), uint64(unix.SIGKILL)}}}, nil)
	if !errors.As(err, &exit) && !errors.Is(err, ErrNoProcess) {
		t.Errorf("error %v, want the process's end", err)
	}
}

func init() { roles["inject"] = injectForever }

// injectForever is a process that injects into the process named by its
// argument until it is killed.
func injectForever() {
	fail := func(err error) {
		fmt.Println("error", err)
		os.Exit(1)
	}
	pid, err := strconv.Atoi(os.Getenv("PID"))
	if err != nil {
		fail(err)
	}
	tr, err := NewTracer()
	if err != nil {
		fail(err)
	}
	for n := 0; ; n++ {
		tids, err := tr.SeizeAll(noContext{}, pid)
		if err != nil {
			fail(err)
		}
		vmas, err := ReadMaps(pid)
		if err != nil {
			fail(err)
		}
		in, err := tr.NewInjector(pid, vmas, InjectorOptions{})
		if err != nil {
			fail(err)
		}
		fmt.Println("in")
		for range 3 {
			for _, tid := range tids {
				if _, err := in.Run(tid, []Call{{NR: unix.SYS_GETTID}, {NR: unix.SYS_GETUID}}, nil); err != nil {
					fail(err)
				}
			}
		}
		fmt.Println("out")
		if err := in.Close(); err != nil {
			fail(err)
		}
		if err := tr.DetachAll(); err != nil {
			fail(err)
		}
	}
}

// noContext is a context that does not end.
type noContext struct{}

func (noContext) Deadline() (time.Time, bool) { return time.Time{}, false }
func (noContext) Done() <-chan struct{}       { return nil }
func (noContext) Err() error                  { return nil }
func (noContext) Value(any) any               { return nil }

// TestTracerDies kills the tracing process at random moments of injecting: the
// target must run on unharmed.
func TestTracerDies(t *testing.T) {
	uffdtest.Need(t, "ptrace")
	p := startTarget(t, compile(t, "target.c"), append([]string{"lenient"}, allKinds[:7]...)...)
	rounds := 150
	if testing.Short() {
		rounds = 30
	}
	for range rounds {
		killInjector(t, p, time.Duration(rand.Int64N(int64(4*time.Millisecond))))
	}
	p.waitProgress()
	checkFree(t, p)
}

// killInjector starts a process that injects, and kills it some time after it
// has begun.
func killInjector(t *testing.T, p *target, after time.Duration) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleEnv+"=inject", "PID="+strconv.Itoa(p.pid()))
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(pipe).ReadString('\n')
	if err != nil || line != "in\n" {
		t.Fatalf("the injecting process said %q, %v; target said %q", line, err, p.said())
	}
	for start := time.Now(); time.Since(start) < after; {
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	p.count() // it lives
}

// TestInjectorHangs has a thread hang in a call in which it can be stopped.
func TestInjectorHangs(t *testing.T) {
	uffdtest.Need(t, "ptrace")
	p := startTarget(t, compile(t, "target.c"), "avx", "sleep")
	tr := newTracer(t)
	tids, in := inject(t, tr, p.pid())
	besideTracer(t, tr, tids[1])
	tr.Patience = time.Second
	before := stateOf(t, tr, tids[1])
	var stuck *StuckError
	if _, err := in.Run(tids[1], []Call{{NR: unix.SYS_PAUSE}}, nil); !errors.As(err, &stuck) {
		t.Fatalf("error %v, want that it does not stop", err)
	}
	tr.Patience = 0
	if after := stateOf(t, tr, tids[1]); after != before {
		t.Errorf("registers %x, before %x; mask %#x, before %#x", after.regs, before.regs, after.mask, before.mask)
	}
	if got, err := in.Run(tids[1], []Call{{NR: unix.SYS_GETTID}}, nil); err != nil || got[0] != int64(tids[1]) {
		t.Errorf("run in it again: %v, %v", got, err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := tr.DetachAll(); err != nil {
		t.Fatal(err)
	}
	p.waitProgress()
}

// besideTracer puts a thread on the tracer's processor, which it gets only where the tracer
// waits.
func besideTracer(t *testing.T, tr *Tracer, tid int) {
	t.Helper()
	err := tr.Do(func() error {
		var cpus, one unix.CPUSet
		if err := unix.SchedGetaffinity(0, &cpus); err != nil {
			return err
		}
		for cpu := 0; one.Count() == 0; cpu++ {
			if cpus.IsSet(cpu) {
				one.Set(cpu)
			}
		}
		return errors.Join(
			unix.SchedSetaffinity(0, &one), unix.SchedSetaffinity(tid, &one),
			unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_BATCH}, 0),
		)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestInjectorHangsForGood has a thread hang in a call in which it cannot be stopped,
// vfork, until its child is killed, which waits for a word to change.
func TestInjectorHangsForGood(t *testing.T) {
	uffdtest.Need(t, "ptrace")
	// The target ends with the thread that starts it, which must not be the tracer's.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p := startTarget(t, compile(t, "target.c"), "avx", "sleep")
	tr, err := NewTracer()
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	tids, in := inject(t, tr, p.pid())
	word, _, err := in.Arena().Alloc(8, 8)
	if err != nil {
		t.Fatal(err)
	}
	tr.Patience = time.Second
	var stuck *StuckError
	_, err = in.Run(tids[1], []Call{
		{NR: unix.SYS_VFORK}, {NR: unix.SYS_FUTEX | MayFail, Args: [6]uint64{word}},
	}, nil)
	children, rerr := ReadFile(tids[1], "task/"+strconv.Itoa(tids[1])+"/children")
	child, cerr := strconv.Atoi(strings.TrimSpace(string(children)))
	if rerr != nil || cerr != nil {
		t.Fatalf("its child: %v, %v; it ran with %v", rerr, cerr, err)
	}
	end := sync.OnceValue(func() error { return unix.Kill(child, unix.SIGKILL) })
	defer end()
	if !errors.As(err, &stuck) {
		t.Fatalf("error %v, want that it does not stop", err)
	}
	tr.Patience = 0
	if _, err := in.Run(tids[0], []Call{{NR: unix.SYS_GETTID}}, nil); !errors.Is(err, errKept) {
		t.Errorf("run in another: %v, want %v", err, errKept)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := tr.Close(); !errors.As(err, &stuck) {
		t.Errorf("close: %v, want that it does not stop", err)
	}
	if _, err := WriteMemory(p.pid(), word, []byte{1}); err != nil {
		t.Fatal(err)
	}
	if err := end(); err != nil {
		t.Fatal(err)
	}
	p.waitProgress()
}
