package pager

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// What is wrong with us says nothing of the keeper: only one that has ended, or is
// none, leaves nothing to go on from.
func TestWantOfDescriptorsIsNoEnd(t *testing.T) {
	k, err := StartKeeper()
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	j, err := newJournal(&world{})
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	if _, err := j.arrive(&world{}, 50, Target{Pid: os.Getpid()}, nil); err != nil {
		t.Fatal(err)
	}
	l := leftOfSelf(t)
	calls := map[string]func(keeper int) error{
		"Resume":   func(keeper int) error { return new(Pager).Resume(t.Context(), keeper, Target{}) },
		"OpenLeft": func(keeper int) error { _, err := OpenLeft(keeper); return err },
	}
	ended := exec.Command("/bin/true")
	if err := ended.Run(); err != nil {
		t.Fatal(err)
	}
	for name, call := range calls {
		for _, nobody := range []int{ended.Process.Pid, 0, -1} {
			if err := call(nobody); !errors.Is(err, ErrNoPredecessor) {
				t.Errorf("%s of %d: %v, not ErrNoPredecessor", name, nobody, err)
			}
		}
	}
	if _, err := l.Take(1 << 20); !errors.Is(err, ErrNoPredecessor) {
		t.Errorf("Take of a descriptor that is not open: %v, not ErrNoPredecessor", err)
	}

	restore := noDescriptors(t)
	defer restore()
	for name, call := range calls {
		if err := call(k.Pid()); !errors.Is(err, unix.EMFILE) || errors.Is(err, ErrNoPredecessor) {
			t.Errorf("%s: %v, want EMFILE and no word of the keeper", name, err)
		}
	}
	if _, err := l.Take(j.file); !errors.Is(err, unix.EMFILE) || errors.Is(err, ErrNoPredecessor) {
		t.Errorf("Take: %v, want EMFILE", err)
	}
	if _, err := l.Held(t.Context()); !errors.Is(err, unix.EMFILE) || errors.Is(err, ErrNoPredecessor) {
		t.Errorf("Held: %v, want EMFILE", err)
	}
	if err := l.End(t.Context()); !errors.Is(err, unix.EMFILE) || errors.Is(err, ErrNoPredecessor) {
		t.Errorf("End: %v, want EMFILE", err)
	}
	if _, err := lockMap("/proc/self/fd/"+strconv.Itoa(j.file), 0, 0); !errors.Is(err, unix.EMFILE) {
		t.Errorf("lockMap: %v, want EMFILE", err)
	}
}

// forkedVictim is one whose pager was killed when it had forked.
func forkedVictim(t *testing.T) (v *victim, child *uffdtest.Thread) {
	t.Helper()
	v = startVictim(t, setting{child: uffdtest.Options{Pages: 64}}, false)
	child, pid := v.Fork(t)
	pid.Wait(t)
	v.killPager()
	return v, child
}

// newPager is one for v, with a keeper.
func (v *victim) newPager(t *testing.T) *Pager {
	t.Helper()
	img, err := openObjects(v.dir)
	if err != nil {
		t.Fatal(err)
	}
	k, err := StartKeeper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	p, err := New(img, Options{Keeper: k})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// openDescriptors lists those of this process that are open, below most.
func openDescriptors(most int) (list []int) {
	for fd := range most {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
			list = append(list, fd)
		}
	}
	return list
}

// Whatever it is that a take-over lacks a descriptor for: what it had taken is given
// back, since the keeper has it.
func TestTakenInVain(t *testing.T) {
	v, child := forkedVictim(t)
	p := v.newPager(t)
	k, err := OpenLeft(v.keeper)
	if err != nil {
		t.Fatal(err)
	}
	if held, err := k.Held(t.Context()); err != nil || len(held) != 2 { // and the runtime opens what it keeps
		t.Fatalf("the keeper has %v, %v; want two processes", held, err)
	}
	k.Close()
	// What is taken first, beside the pidfd, is the state, which is closed again.
	for _, c := range []struct {
		lacks string
		free  int
	}{{"pidfd_open", 0}, {"pidfd_getfd", 2}, {"memfd_create", 3}} {
		lacks, free := c.lacks, c.free
		restore := noDescriptors(t)
		before := openDescriptors(128)
		for fd := 128 - free; fd < 128; fd++ {
			_ = unix.Close(fd)
		}
		err := p.takeFrom(t, v.keeper, Target{Pid: v.Pid, PidFD: -1})
		for range free { // restore closes them
			if fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
				t.Errorf("%s: a descriptor has not been given back: %v", lacks, err)
			} else if fd < 128-free {
				t.Errorf("%s: descriptor %d, which was open before, is closed", lacks, fd)
			}
		}
		if after := openDescriptors(128); len(after) != len(before) {
			t.Errorf("%s: open are %v, %v were", lacks, after, before)
		}
		restore()
		var call *os.SyscallError
		if !errors.As(err, &call) || call.Syscall != lacks || !errors.Is(err, unix.EMFILE) || errors.Is(err, ErrNoPredecessor) {
			t.Errorf("TakeOver: %v, want that %s lacks a descriptor", err, lacks)
		}
		if p.Holds() || ended(v.keeper) {
			t.Fatalf("%s: the old keeper is not the one who holds", lacks)
		}
	}
	v.resume(t)
	v.check(t, v.Thread)
	v.check(t, child)
}

// What was taken from a keeper that ends before all is taken stays open, and a
// successor finds it with the new keeper.
func TestKeeperEndsMeanwhile(t *testing.T) {
	for name, most := range map[string]int{"attached": 0, "without a descriptor for the state": 128} {
		t.Run(name, func(t *testing.T) {
			v, _ := forkedVictim(t)
			p := v.newPager(t)
			k, err := OpenLeft(v.keeper)
			if err != nil {
				t.Fatal(err)
			}
			defer k.Close()
			target := Target{Pid: v.Pid, PidFD: -1}
			w, err := k.inherit(t.Context(), target)
			if err != nil {
				t.Fatal(err)
			}
			w.spaces[1].fd = 1 << 20 // which is not open, as none is of a keeper that ends
			list, err := k.takeSpaces(w)
			if len(list) != 1 || !errors.Is(err, ErrNoPredecessor) {
				t.Fatalf("takeSpaces took %d, %v", len(list), err)
			}
			if err := k.kill(); err != nil {
				t.Fatal(err)
			}
			if !uffdtest.Readable(k.pidfd, uffdtest.Timeout) {
				t.Fatal("the keeper has not ended")
			}
			if most > 0 {
				restore := noDescriptors(t)
				err = p.putBack(k, w, list, target, err)
				restore()
			} else {
				err = p.putBack(k, w, list, target, err)
			}
			if err == nil || errors.Is(err, ErrNoPredecessor) {
				t.Errorf("the error says %v, and something has changed", err)
			}
			if err := p.Discard(); err != nil || !p.Holds() || list[0].u.Fd() < 0 || ended(p.opts.Keeper.Pid()) {
				t.Fatalf("the last userfaultfd of a process is let go (%v)", err)
			}
			waiting := v.Load(v.Addr(40))
			waits(t, waiting)
			if most > 0 {
				v.Kill()
				if err := p.Discard(); err != nil || list[0].u.Fd() >= 0 {
					t.Errorf("the userfaultfd of a process that has ended is open (%v)", err)
				}
				return
			}
			v.keeper = p.opts.Keeper.Pid()
			v.resume(t)
			if got, want := waiting.Wait(t), uint64(v.want[40*page.Size]); got != want {
				t.Errorf("the page waited for begins with %d, want %d", got, want)
			}
			v.check(t, v.Thread)
		})
	}
}
