package pager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// A starving is a thread that gets no processor unless run is called.
type starving struct {
	task string // its directory
	ran  time.Duration
}

func starve(t *testing.T) *starving {
	t.Helper()
	st := &starving{task: filepath.Join(t.TempDir(), "999999999"), ran: 5 * time.Millisecond} // nobody's
	if err := os.Mkdir(st.task, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(st.task, "syscall"), []byte("running\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	st.run(t, 0)
	return st
}

func (st *starving) run(t *testing.T, d time.Duration) {
	t.Helper()
	st.ran += d
	if err := os.WriteFile(filepath.Join(st.task, "schedstat"), fmt.Appendf(nil, "%d 0 1\n", st.ran), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (st *starving) lookOut() *lookOut {
	return &lookOut{tasks: []string{st.task}, ran: map[string]*runTime{}}
}

// A pager that is told to stop looks long enough to see who computes, and then no longer.
func TestLastRounds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, step := range []time.Duration{0, tickTime} {
		st, rounds, begun := starve(t), 0, time.Now()
		err := st.lookOut().look(ctx, &patience{}, func() bool {
			if rounds++; rounds > lookYields && step > 0 {
				st.run(t, step)
			}
			return true
		})
		all := rounds == lookYields+1+lastRounds || time.Since(begun) >= lookTime // rounds take long on a busy machine
		switch {
		case step > 0 && err != nil:
			t.Errorf("%v in round %d, though it computes", err, rounds)
		case step == 0 && (!errors.Is(err, context.Canceled) || !all):
			t.Errorf("%v in round %d", err, rounds)
		}
	}
}

// A look at all processes gives up after a moment, which it takes from no budget.
func TestLooksAtAllHaveNoBudget(t *testing.T) {
	l, p := starve(t).lookOut(), patience{last: time.Now()}
	l.all = true
	if err := l.look(t.Context(), &p, func() bool { return true }); !errors.Is(err, errUnsure) || p.spent > 0 {
		t.Errorf("%v; it took %v from the budget", err, p.spent)
	}
}

// What a look was for that ends with the pager is left to a successor, who has seen nothing of it.
func TestLookEndsWithThePager(t *testing.T) {
	uffdtest.Need(t, "uffd")
	c := uffdtest.Start(t, uffdtest.Options{Pages: 4, Features: events})
	l, err := newLayout([]page.Mapping{{Range: page.RangeOf(page.Addr(c.Start), c.Length), Image: testBase, PageSize: page.Size}})
	if err != nil {
		t.Fatal(err)
	}
	se, w := fakeSession(t, 4, plainSource), &world{}
	s := newSpace(se.pages, w.add(c.FD.Fd(), computing(t), l), c.FD, c.FD, nil)
	se.spaces.Store(&[]*space{s})
	j, err := newJournal(w)
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := &reader{worker: *se.newWorker("reader"), ctx: ctx, world: w, journal: j}
	defer r.close()

	unmapped := c.Munmap(c.Addr(3), page.Size) // something is still to be told
	uffdtest.WaitMessage(t, c.FD)
	defer func() {
		_ = c.FD.Close()
		unmapped.Wait(t)
	}()
	b := slotOf(&j.slots(s.id, nil)[0])
	b[0] = slotRemap
	for i, word := range []page.Addr{page.Addr(c.Start), page.Addr(c.Start) + 1<<30, page.Size} {
		order64.PutUint64(b[8+8*i:], uint64(word))
	}
	e, err := parseSlot(b)
	if err != nil {
		t.Fatal(err)
	}
	j.keep(1)
	if err := r.change(s, e); err != nil || len(s.fresh) != 1 {
		t.Fatalf("%v; %d events are fresh", err, len(s.fresh))
	}

	exhausted := patience{spent: 2 * maxLooks, last: time.Now()} // else it would be seen that it computes
	r.patience = exhausted
	if err := r.lookAround(s); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if last := slotOf(&j.log[j.pos-1])[0]; len(s.fresh) != 1 || last != slotRemap {
		t.Errorf("%d events are fresh, and the log ends with %#x", len(s.fresh), last)
	}
	r.patience = exhausted
	if _, ok := r.lookBefore(s, func() bool { return true }); ok {
		t.Error("something is read after a look that was ended")
	}
}

// computing is a process that never sleeps.
func computing(t *testing.T) (pid int) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "echo; while :; do :; done")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}
