package pager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// letHalf makes all that is attached resident, writes down that it is let go, and is killed before it is.
func (p *Pager) letHalf(u *uffd.FD, what string) error {
	at := p.attached
	for r := range at.world.spaces[0].registered.All() {
		if _, err := u.Zero(uint64(r.Start), r.Len(), 0); err != nil {
			return err
		}
	}
	switch what {
	case "expected":
		at.world.add(-1, 1, layout{})
		if err := at.journal.compact(at.world); err != nil {
			return err
		}
	case "not written down":
		if _, err := unix.Dup(u.Fd()); err != nil {
			return err
		}
	}
	at.journal.drop(0)
	if what == "spoiled" {
		at.journal.spoil()
	}
	fmt.Println(p.opts.Keeper.Pid())
	return unix.Kill(os.Getpid(), unix.SIGKILL)
}

// A pager that is killed while it lets go of memory has a successor, who does that again, also where somebody
// else has the userfaultfd open.
func TestKilledWhileLettingGo(t *testing.T) {
	for name, open := range map[string]bool{"alone": false, "its predecessor lives on": true} {
		t.Run(name, func(t *testing.T) {
			v := startVictimOf(t, setting{child: uffdtest.Options{Pages: 16}}, helperConfig{Let: "resident"})
			if open {
				takeOnly(t, v.keeper)
			}
			v.killPager()
			call := v.Madvise(v.Start, page.Size, unix.MADV_DONTNEED)
			waits(t, call)
			v.resume(t)
			call.Wait(t)
			awaitEnd(t, v.keeper)
			zero(t, v.Thread, v.Start, 16*page.Size)
			v.Munmap(v.Addr(8), page.Size).Wait(t)
			_, pid := v.Fork(t)
			pid.Wait(t)
		})
	}
}

// takeOnly takes the one userfaultfd that a keeper has, and holds it until the test ends.
func takeOnly(t *testing.T, keeper int) (fd int) {
	t.Helper()
	k, err := OpenLeft(keeper)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	fds, err := k.Userfaultfds()
	if err != nil || len(fds) != 1 {
		t.Fatalf("the keeper has %v, %v", fds, err)
	}
	if fd, err = k.Take(fds[0]); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// Where it cannot be told that nothing is missing, the keeper stays.
func TestKilledWithMoreToCome(t *testing.T) {
	for _, what := range []string{"spoiled", "expected", "not written down"} {
		t.Run(what, func(t *testing.T) {
			v := startVictimOf(t, setting{child: uffdtest.Options{Pages: 16}}, helperConfig{Let: what})
			v.killPager()
			p := v.newPager(t)
			if err := p.takeFrom(t, v.keeper, Target{PidFD: -1}); !errors.Is(err, ErrNoPredecessor) {
				t.Errorf("TakeOver: %v, want ErrNoPredecessor", err)
			}
			if ended(v.keeper) || p.Holds() {
				t.Error("the keeper is not the one who holds")
			}
		})
	}
}

// A process that has ended beside the one of which a pager let go when it was killed is in nobody's way.
func TestKilledBesideOneThatEnded(t *testing.T) {
	v := startVictimOf(t, setting{child: uffdtest.Options{Pages: 16}}, helperConfig{Let: "resident", Beside: true})
	v.killPager()
	call := v.Madvise(v.Start, page.Size, unix.MADV_DONTNEED)
	waits(t, call)
	v.resume(t)
	call.Wait(t)
	awaitEnd(t, v.keeper)
}

// Who waits is woken before it is looked who else holds the same, which may take long.
func TestWokenFirst(t *testing.T) {
	v := startVictim(t, setting{child: uffdtest.Options{Pages: 16}}, false)
	v.killPager()
	v.successor(t, false)
	fd := takeOnly(t, v.keeper)
	touch := v.Load(v.Addr(4))
	uffdtest.WaitMessage(t, uffd.FromFD(fd))
	var buf [1]uffd.Msg
	if n, err := uffd.FromFD(fd).Read(buf[:]); n != 1 || err != nil { // as a pager that was killed had
		t.Fatalf("read %d faults, %v", n, err)
	}
	p, again := v.newPager(t), false
	p.opts.Logger = slog.New(onSay{slog.DiscardHandler, func() {
		again = uffdtest.Readable(fd, uffdtest.Timeout)
	}})
	if err := p.takeFrom(t, v.keeper, Target{Pid: v.Pid, PidFD: -1}); err != nil {
		t.Fatal(err)
	}
	if !again {
		t.Error("another keeper was looked for, and who waits was not woken")
	}
	p.opts.Logger = slog.New(slog.DiscardHandler)
	if err := p.ServeAttached(t.Context()); err != nil {
		t.Fatal(err)
	}
	touch.Wait(t)
}

// onSay is told whenever something is logged.
type onSay struct {
	slog.Handler
	f func()
}

func (o onSay) Enabled(context.Context, slog.Level) bool { return true }

func (o onSay) Handle(context.Context, slog.Record) error {
	o.f()
	return nil
}
