package proc

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

func init() { roles["crash"] = crash }

// crashStages are the moments at which a tracer dies; each goes on from the one
// before it.
var crashStages = []string{
	"detour written", "detour registers", "detour mask", "detour entered", "detour left", "detour stopped", "detour mask back",
	"loop registers", "loop mask", "loop runs", "loop stopped", "loop mask back",
}

// crash is a process that takes every thread of a process to the moment named,
// and dies.
func crash() {
	pid, err := strconv.Atoi(os.Getenv("PID"))
	if err != nil {
		panic(err)
	}
	tr, err := NewTracer()
	if err != nil {
		panic(err)
	}
	err = tr.Do(func() error {
		tids, err := tr.SeizeAll(noContext{}, pid)
		if err != nil {
			return err
		}
		vmas, err := ReadMaps(pid)
		if err != nil {
			return err
		}
		stage := os.Getenv("STAGE")
		if strings.HasPrefix(stage, "detour") {
			for _, tid := range tids {
				if err := crashDetour(tr, tid, vmas, stage); err != nil {
					return err
				}
			}
			return nil
		}
		in, err := tr.NewInjector(pid, vmas, InjectorOptions{})
		if err != nil {
			return err
		}
		// The region has room for one thread.
		n, err := strconv.Atoi(os.Getenv("THREAD"))
		if err != nil {
			return err
		}
		return crashLoop(in, tids[n%len(tids)], stage)
	})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
}

func crashDetour(tr *Tracer, tid int, vmas []VMA, stage string) error {
	vdso, err := findVDSO(vmas)
	if err != nil {
		return err
	}
	k := tr.tasks[tid]
	places, err := detourPlaces(k.pid, vdso)
	if err != nil {
		return err
	}
	place := places[0] // those of the threads before are in use
	saved, err := tr.context(k)
	if err != nil {
		return err
	}
	mask, err := getSigMask(tid)
	if err != nil {
		return err
	}
	back := saved.interrupted()
	regs := saved.call(place, unix.SYS_GETTID, nil)
	regs[EFlags] = saved[EFlags]
	steps := []func() error{
		func() error { return tr.writeCode(tid, place, detour(&back, mask)) },
		func() error { return setRegs(tid, &regs) },
		func() error { return setSigMask(tid, ^uint64(0)) },
		func() error { return tr.runTo(k, unix.PTRACE_SYSCALL, StopSyscall, time.Now().Add(patience)) },
		func() error { return tr.runTo(k, unix.PTRACE_SYSCALL, StopSyscall, time.Now().Add(patience)) },
		func() error {
			if err := tr.poke(k); err != nil {
				return err
			}
			return tr.runTo(k, unix.PTRACE_CONT, StopInterrupt, time.Now().Add(patience))
		},
		func() error { return setSigMask(tid, mask) },
	}
	return doUntil(steps, crashStages[:7], stage)
}

func crashLoop(in *Injector, tid int, stage string) error {
	tr := in.t
	table, _, err := in.arena.Table([]Call{{NR: unix.SYS_GETTID}, {NR: unix.SYS_SCHED_YIELD}})
	if err != nil {
		return err
	}
	j := &injection{Injector: in, k: tr.tasks[tid]}
	if j.regs, err = tr.context(j.k); err != nil {
		return err
	}
	mask, err := getSigMask(tid)
	if err != nil {
		return err
	}
	j.mask = mask
	loop, err := j.lay(table)
	if err != nil {
		return err
	}
	steps := []func() error{
		func() error { return setRegs(tid, &loop) },
		func() error { return setSigMask(tid, ^uint64(1<<(injectSignal-1))) },
		func() error { return tr.Cont(tid, 0) },
		func() error {
			_, err := tr.wait(tid, time.Now().Add(patience))
			return err
		},
		func() error { return setSigMask(tid, mask) },
	}
	return doUntil(steps, crashStages[7:], stage)
}

// doUntil takes the steps up to the one whose name is given.
func doUntil(steps []func() error, names []string, last string) error {
	for i, f := range steps {
		if err := f(); err != nil {
			return fmt.Errorf("%s: %w", names[i], err)
		}
		if names[i] == last {
			return nil
		}
	}
	return fmt.Errorf("no stage %q", last)
}

// TestTracerDiesAt kills the tracer at each moment at which the target's
// registers, mask or code are not its own.
func TestTracerDiesAt(t *testing.T) {
	uffdtest.Need(t, "ptrace")
	bin := compile(t, "target.c")
	for _, stage := range crashStages {
		t.Run(stage, func(t *testing.T) {
			p := startTarget(t, bin, append([]string{"lenient"}, allKinds[:7]...)...)
			rounds := 1
			if strings.HasPrefix(stage, "loop") {
				rounds = p.n
			}
			for i := range rounds {
				cmd := exec.Command(os.Args[0])
				cmd.Env = append(os.Environ(), roleEnv+"=crash", "PID="+strconv.Itoa(p.pid()), "STAGE="+stage, "THREAD="+strconv.Itoa(i))
				out, err := cmd.CombinedOutput()
				if st, ok := cmd.ProcessState.Sys().(interface{ Signaled() bool }); !ok || !st.Signaled() {
					t.Fatalf("%v: %s", err, out)
				}
				p.waitProgress()
			}
			checkFree(t, p)
		})
	}
}

// checkFree checks that nobody traces a target, and that its threads block no
// signals but those that the program itself blocks.
func checkFree(t *testing.T, p *target) {
	t.Helper()
	const own = 1<<(unix.SIGUSR1-1) | 1<<(unix.SIGUSR2-1) | 1<<(unix.SIGURG-1)
	tids, err := ReadTasks(p.pid())
	if err != nil {
		t.Fatal(err)
	}
	for _, tid := range tids {
		s, err := ReadStatus(tid)
		if err != nil || s.State == 'T' || s.State == 't' || s.TracerPid != 0 || s.SigBlk&^own != 0 {
			t.Errorf("thread %d: state %c, traced by %d, blocks %#x, %v", tid, s.State, s.TracerPid, s.SigBlk, err)
		}
	}
}
