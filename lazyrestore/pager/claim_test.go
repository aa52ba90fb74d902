package pager

import (
	"errors"
	"os"
	"os/exec"
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
	if held, err := Left(first); !errors.Is(err, ErrNoPredecessor) || !errors.Is(err, ErrTaken) {
		t.Errorf("Left of the first keeper: %v, %v; it has been taken over from", held, err)
	}
	p := v.newPager(t)
	if err := p.TakeOver(first, Target{Pid: v.Pid, PidFD: -1}); !errors.Is(err, ErrNoPredecessor) {
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

// Nothing is taken before the keeper has run that is to hold it, and has its name: if the pager were killed then, whoever
// takes over from the other one would not know it.
func TestKeeperRunsFirst(t *testing.T) {
	v := startVictim(t, setting{child: uffdtest.Options{Pages: 16}}, false)
	v.killPager()
	cmd := exec.Command("/bin/sh", "-c", "read x; echo "+keeperName+" >/proc/$$/comm; read x")
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
	go func() { done <- p.TakeOver(v.keeper, Target{Pid: v.Pid, PidFD: -1}) }()
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

// Of two that take over at once one does, and the other changes nothing.
func TestTwoTakeOver(t *testing.T) {
	v, child := forkedVictim(t)
	var (
		pagers [2]*Pager
		left   [2]*Leftover
	)
	target := Target{Pid: v.Pid, PidFD: -1}
	before := len(openDescriptors(128))
	for i := range pagers {
		pagers[i] = v.newPager(t)
		k, err := OpenLeft(v.keeper)
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		fds, err := pagers[i].takeAll(k, target)
		if err != nil || len(fds) != 2 {
			t.Fatalf("taken: %d, %v", len(fds), err)
		}
		left[i] = k
	}
	if !left[0].claim() {
		t.Fatal("the first cannot take over")
	}
	if left[1].claim() {
		t.Fatal("both take over")
	}
	fds := pagers[1].attached.fds
	if err := pagers[1].giveUp(fds); !errors.Is(err, ErrNoPredecessor) || pagers[1].Holds() {
		t.Errorf("the second still holds what the first has taken over (%v)", err)
	}
	// Two userfaultfds and a state of the first, and a pidfd of each.
	if after := len(openDescriptors(128)); after != before+5 {
		t.Errorf("%d descriptors are open, %d were: want 5 more", after, before)
	}
	if err := pagers[0].endOthers(); err != nil { // also v.keeper, which holds the same
		t.Fatal(err)
	}
	awaitEnd(t, v.keeper)
	if err := pagers[0].ServeAttached(t.Context()); err != nil {
		t.Fatal(err)
	}
	v.check(t, v.Thread)
	v.check(t, child)
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
	if _, err := k.inherit(Target{}); err != nil {
		t.Fatal(err)
	}
	v.keeper = v.successor(t, false)
	v.resume(t)
	if k.claim() { // its memory is there as long as we have it
		t.Error("a keeper was ended, and what it has says that nobody has taken over")
	}
	awaitEnd(t, k.pid)
	v.check(t, v.Thread)
}
