package pager

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// startStopped starts a keeper that never runs: it is stopped before, as it gets no processor from a thread that
// goes before others and does not sleep.
func startStopped() (k *Keeper, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return nil, err
	}
	for cpu := 0; one.Count() == 0; cpu++ {
		if all.IsSet(cpu) {
			one.Set(cpu)
		}
	}
	attr, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return nil, err
	}
	if err := unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0); err != nil {
		return nil, err
	}
	k, err = StartKeeper()
	if err == nil {
		err = unix.Kill(k.Pid(), unix.SIGSTOP)
	}
	if err == nil {
		err = unix.SchedSetAttr(0, attr, 0)
	}
	if err == nil {
		err = unix.SchedSetaffinity(0, &all)
	}
	return k, err
}

// A keeper that has not run yet when its pager is killed is known for one all the same.
func TestKeeperThatHasNotRun(t *testing.T) {
	uffdtest.Need(t, "root")
	for name, let := range map[string]string{"something is missing": "", "it is let go of": "resident"} {
		t.Run(name, func(t *testing.T) {
			v := startVictimOf(t, setting{child: uffdtest.Options{Pages: 16}}, helperConfig{Stopped: true, Let: let})
			v.killPager()
			stat, err := proc.ReadStat(v.keeper)
			if err != nil || stat.Session == v.keeper {
				t.Fatalf("the keeper has run, or has ended: %+v, %v", stat, err)
			}
			k, err := OpenLeft(v.keeper)
			if err != nil {
				t.Fatal(err)
			}
			if waits, err := k.Waits(-1); !waits || err != nil {
				t.Errorf("Waits = %v, %v; a process waits", waits, err)
			}
			k.Close()
			call := v.Madvise(v.Start, page.Size, unix.MADV_DONTNEED)
			waits(t, call)
			v.resume(t)
			call.Wait(t)
			awaitEnd(t, v.keeper)
		})
	}
}

// So it is of one that is ended because another has all that it holds.
func TestEndKeeperThatHasNotRun(t *testing.T) {
	uffdtest.Need(t, "root")
	v := startVictimOf(t, setting{child: uffdtest.Options{Pages: 16}}, helperConfig{Stopped: true})
	takeOnly(t, v.keeper)
	v.killPager()
	k, err := OpenLeft(v.keeper)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if err := k.End(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitEnd(t, v.keeper)
}

// The thread that makes a keeper has its own name afterwards.
func TestNameOfWhoMakesAKeeper(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	comm := filepath.Join("/proc/self/task", fmt.Sprint(unix.Gettid()), "comm")
	was, err := os.ReadFile(comm)
	if err != nil {
		t.Fatal(err)
	}
	k, err := StartKeeper()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = k.Close() }()
	if is, err := os.ReadFile(comm); err != nil || string(is) != string(was) {
		t.Errorf("the thread is %q, and was %q (%v)", is, was, err)
	}
}
