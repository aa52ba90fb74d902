package pager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// A keeper that has been taken over from is none any more, even if it lives on, as one does for a while that is ended
// and does not get to run: what has happened since only the keeper of the successor knows, from which is gone on.
func TestTakenOverAndAlive(t *testing.T) {
	const n = 64
	v := startVictim(t, setting{child: uffdtest.Options{Pages: n}}, false)
	v.killPager()
	first := v.keeper
	v.keeper = v.successor(t, true)
	p := v.newPager(t)
	if err := p.takeFrom(t, first, Target{Pid: v.Pid, PidFD: -1}); !errors.Is(err, ErrNoPredecessor) || !errors.Is(err, ErrTaken) {
		t.Errorf("TakeOver from the first keeper: %v; it has been taken over from", err)
	}
	if p.Holds() || ended(first) || ended(v.keeper) {
		t.Error("something has changed")
	}
	v.resume(t)
	awaitEnd(t, first)
	awaitEnd(t, v.keeper)
	v.check(t, v.Thread)
	v.Madvise(v.Start, page.Size, unix.MADV_DONTNEED).Wait(t)
}

// Nothing is taken before the keeper has run that is to hold it, and has a session of its own.
func TestKeeperRunsFirst(t *testing.T) {
	v := startVictim(t, setting{child: uffdtest.Options{Pages: 16}}, false)
	v.killPager()
	cmd := exec.Command("/bin/sh", "-c", "read x; exec setsid sh -c 'read x'")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer func() { _ = cmd.Process.Release() }() // or its pidfd is closed when another test counts them
	keeper := &Keeper{pid: cmd.Process.Pid}
	t.Cleanup(func() { _ = keeper.Close() })
	p := v.newPager(t)
	if err := p.opts.Keeper.Close(); err != nil {
		t.Fatal(err)
	}
	p.Keep(keeper)
	before, err := userfaultfdsOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- p.takeFrom(t, v.keeper, Target{Pid: v.Pid, PidFD: -1}) }()
	select {
	case err := <-done:
		t.Fatalf("TakeOver has not waited for the keeper (%v)", err)
	case <-time.After(20 * time.Millisecond):
	}
	if now, err := userfaultfdsOf(os.Getpid()); err != nil || len(now) != len(before) {
		t.Errorf("userfaultfds %v are taken, %v were open before (%v)", now, before, err)
	}
	if _, err := in.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := p.ServeAttached(t.Context()); err != nil {
		t.Fatal(err)
	}
	v.check(t, v.Thread)
}

// takeFrom is TakeOver from who is opened for it.
func (p *Pager) takeFrom(t *testing.T, keeper int, target Target) error {
	t.Helper()
	k, err := OpenLeft(keeper)
	if err != nil {
		return err
	}
	defer k.Close()
	return p.TakeOver(t.Context(), k, target)
}

// unchanged checks that f opens and closes nothing, and has nothing attached to p.
func (p *Pager) unchanged(t *testing.T, f func()) {
	t.Helper()
	before := openDescriptors(128)
	f()
	if after := openDescriptors(128); !slices.Equal(before, after) {
		t.Errorf("descriptors %v are open, %v were", after, before)
	}
	if p.attached != nil || p.Holds() {
		t.Error("something is attached")
	}
}

// Of two that take over at once one does, and the other changes nothing: it waits, and learns that it is too late.
func TestTwoTakeOver(t *testing.T) {
	v, child := forkedVictim(t)
	target := Target{Pid: v.Pid, PidFD: -1}
	first, second := v.newPager(t), v.newPager(t)
	k, err := OpenLeft(v.keeper)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if fds, err := first.takeAll(t.Context(), k, target); err != nil || len(fds) != 2 {
		t.Fatalf("taken: %d, %v", len(fds), err)
	}
	late := make(chan error, 1)
	second.unchanged(t, func() {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		o, err := OpenLeft(v.keeper)
		if err != nil {
			t.Fatal(err)
		}
		defer o.Close()
		if err := second.TakeOver(ctx, o, target); !errors.Is(err, ErrServed) {
			t.Errorf("TakeOver: %v, want that another takes over", err)
		}
	})
	go func() { late <- second.takeFrom(t, v.keeper, target) }()
	k.found.claim()
	k.Close()
	if err := <-late; !errors.Is(err, ErrNoPredecessor) || !errors.Is(err, ErrTaken) || second.attached != nil {
		t.Errorf("TakeOver: %v, want that another has taken over", err)
	}
	if err := first.endOthers(); err != nil { // also v.keeper, which holds the same
		t.Fatal(err)
	}
	awaitEnd(t, v.keeper)
	if err := first.ServeAttached(t.Context()); err != nil {
		t.Fatal(err)
	}
	v.check(t, v.Thread)
	v.check(t, child)
}

// Nobody takes over from a pager that lives, and who tries changes nothing.
func TestTakeOverFromTheLiving(t *testing.T) {
	v := startVictim(t, setting{child: uffdtest.Options{Pages: 64}}, false)
	p := v.newPager(t)
	before, err := userfaultfdsOf(v.keeper) // of its other descriptors some come and go as the pager works
	if err != nil || len(before) == 0 {
		t.Fatal(before, err)
	}
	p.unchanged(t, func() {
		err := p.takeFrom(t, v.keeper, Target{Pid: v.Pid, PidFD: -1})
		if !errors.Is(err, ErrServed) || errors.Is(err, ErrNoPredecessor) || !strings.Contains(err.Error(), fmt.Sprintf("process %d, serves", v.pagerCmd.Process.Pid)) {
			t.Errorf("TakeOver: %v, want that process %d serves", err, v.pagerCmd.Process.Pid)
		}
	})
	if after, err := userfaultfdsOf(v.keeper); err != nil || !slices.Equal(after, before) {
		t.Errorf("the userfaultfds there are %v, %v were (%v)", after, before, err)
	}
	v.checkAt(t, v.Thread, v.Start, 0, 32*page.Size)
	v.killPager()
	v.resume(t)
	v.check(t, v.Thread)
}

// Whoever has come to take over waits for a pager that is about to end, but not for ever.
func TestTakeOverAwaitsTheEnd(t *testing.T) {
	v := startVictim(t, setting{child: uffdtest.Options{Pages: 64}}, false)
	p := v.newPager(t)
	done := make(chan error, 1)
	go func() { done <- p.takeFrom(t, v.keeper, Target{Pid: v.Pid, PidFD: -1}) }()
	select {
	case err := <-done:
		t.Fatalf("TakeOver has not waited: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	v.killPager()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := p.ServeAttached(t.Context()); err != nil {
		t.Fatal(err)
	}
	v.check(t, v.Thread)
}

// A pager whose Serve has returned early has left its state to whoever comes, though its process lives.
func TestTakeOverHere(t *testing.T) {
	for name, wait := range map[string]time.Duration{"at once": 0, "when it serves": 20 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			v := startVictim(t, setting{child: uffdtest.Options{Pages: 64}}, false)
			v.killPager()
			p := v.newPager(t)
			p.opts.Background = None
			if err := p.takeFrom(t, v.keeper, Target{Pid: v.Pid, PidFD: -1}); err != nil {
				t.Fatal(err)
			}
			v.keeper = p.opts.Keeper.Pid()
			ctx, cancel := context.WithTimeout(t.Context(), wait)
			defer cancel()
			if err := p.ServeAttached(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("ServeAttached: %v", err)
			}
			v.resume(t)
			v.check(t, v.Thread)
		})
	}
}

// A pager that has left its state is taken over from at once, also where another one of its process serves.
func TestTakeOverBesideAnotherHere(t *testing.T) {
	a, b := startVictim(t, setting{child: uffdtest.Options{Pages: 16}}, false), startVictim(t, setting{child: uffdtest.Options{Pages: 16}}, false)
	b.killPager()
	serving := b.newPager(t)
	serving.opts.Background = None
	if err := serving.takeFrom(t, b.keeper, Target{Pid: b.Pid, PidFD: -1}); err != nil {
		t.Fatal(err)
	}
	a.killPager()
	p := a.newPager(t)
	if err := p.takeFrom(t, a.keeper, Target{Pid: a.Pid, PidFD: -1}); err != nil {
		t.Fatal(err)
	}
	p.leave()
	began := time.Now()
	a.keeper = p.opts.Keeper.Pid()
	next := a.newPager(t)
	if err := next.takeFrom(t, a.keeper, Target{Pid: a.Pid, PidFD: -1}); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took >= lockPatience {
		t.Errorf("it has waited for %v for a pager that serves another process", took)
	}
	for _, p := range []*Pager{serving, next} {
		p.opts.Background = Full
		if err := p.ServeAttached(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	a.check(t, a.Thread)
	b.check(t, b.Thread)
}

// What a state says of descriptors holds where it is the one that it says it is: the keeper of who looks into another one's
// has that too for a moment.
func TestStateOfAnotherKeeper(t *testing.T) {
	v := startVictim(t, setting{child: uffdtest.Options{Pages: 16}}, false)
	v.killPager()
	k, err := OpenLeft(v.keeper)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if err := k.tryLock(); err != nil || len(k.states) != 1 {
		t.Fatalf("%d states, %v", len(k.states), err)
	}
	state := k.states[0].fd
	k.unlock()
	own, err := k.Take(state)
	if err != nil {
		t.Fatal(err)
	}
	moved, err := unix.FcntlInt(uintptr(own), unix.F_DUPFD_CLOEXEC, max(own, state)+1)
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(own)
	defer func() { _ = unix.Close(moved) }()
	self := leftOfSelf(t)
	if held, err := self.Held(t.Context()); !errors.Is(err, ErrNoPredecessor) {
		t.Errorf("Held = %v, %v of who has no state of its own", held, err)
	}
	self.unlock()
	v.resume(t)
	v.check(t, v.Thread)
}

// What is no userfaultfd is not taken for one.
func TestTakeWhatIsNone(t *testing.T) {
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	before := openDescriptors(128)
	k := leftOfSelf(t)
	w := &world{}
	w.add(int(file.Fd()), 1, layout{})
	if list, err := k.takeSpaces(w); len(list) > 0 || !errors.Is(err, errState) {
		t.Errorf("taken %v, %v", list, err)
	}
	if after := openDescriptors(128); len(after) != len(before)+1 { // and the pidfd
		t.Errorf("descriptors %v are open, %v were", after, before)
	}
}

// The states of keepers that are ended because they hold the same are no longer good either, however late they end.
func TestOthersAreClaimed(t *testing.T) {
	v := startVictim(t, setting{child: uffdtest.Options{Pages: 16}}, false)
	v.killPager()
	k, err := OpenLeft(v.keeper)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if err := k.tryLock(); err != nil {
		t.Fatal(err)
	}
	var taken [8]byte
	state, err := k.Take(k.states[0].fd)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(state) }()
	k.unlock()
	v.keeper = v.successor(t, false)
	v.resume(t)
	if _, err := unix.Pread(state, taken[:], takenOffset); err != nil || order64.Uint64(taken[:]) != uint64(os.Getpid()) {
		t.Errorf("a keeper was ended, and what it has says that %d has taken over (%v)", taken, err)
	}
	awaitEnd(t, k.pid)
	v.check(t, v.Thread)
}
