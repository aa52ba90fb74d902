package pager

import (
	"errors"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
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
	if _, err := j.arrive(&world{}, 50, os.Getpid(), nil); err != nil {
		t.Fatal(err)
	}
	l := leftOfSelf(t)
	calls := map[string]func(keeper int) error{
		"TakeOver":  func(keeper int) error { return new(Pager).TakeOver(keeper, Target{}) },
		"Left":      func(keeper int) error { _, err := Left(keeper); return err },
		"EndKeeper": EndKeeper,
		"OpenLeft":  func(keeper int) error { _, err := OpenLeft(keeper); return err },
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
	if _, err := l.inherit(Target{}); !errors.Is(err, unix.EMFILE) || errors.Is(err, ErrNoPredecessor) {
		t.Errorf("inherit: %v, want EMFILE", err)
	}
	if _, err := l.state(j.file); !errors.Is(err, unix.EMFILE) || errors.Is(err, ErrNoPredecessor) {
		t.Errorf("state: %v, want EMFILE", err)
	}
}
