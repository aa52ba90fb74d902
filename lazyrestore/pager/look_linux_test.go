package pager

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// A starving is a reader that looks at a thread which gets no processor. In the first of its spaces something is
// still to be told, and what was told last is fresh.
type starving struct {
	*reader
	s        []*space
	children []*uffdtest.Child
	task     string // the thread's directory
}

func starve(t *testing.T, ctx context.Context) *starving {
	t.Helper()
	uffdtest.Need(t, "uffd")
	st := &starving{task: filepath.Join(t.TempDir(), "999999999")} // nobody's
	if err := os.Mkdir(st.task, 0o700); err != nil {
		t.Fatal(err)
	}
	st.write(t, "syscall", "running\n")
	st.write(t, "schedstat", "5 0 1\n")
	se := fakeSession(t, 4, plainSource)
	w := &world{}
	for range 2 {
		c := uffdtest.Start(t, uffdtest.Options{Pages: 4, Features: events})
		l, err := newLayout([]page.Mapping{{Range: page.RangeOf(page.Addr(c.Start), c.Length), Image: testBase, PageSize: page.Size}})
		if err != nil {
			t.Fatal(err)
		}
		st.s = append(st.s, newSpace(se.pages, w.add(c.FD.Fd(), c.Pid, l), c.FD, c.FD, nil))
		st.children = append(st.children, c)
	}
	se.spaces.Store(&st.s)
	j, err := newJournal(w)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(j.close)
	st.reader = &reader{worker: *se.newWorker("reader"), ctx: ctx, world: w, journal: j}
	t.Cleanup(st.close)

	c := st.children[0]
	unmapped := c.Munmap(c.Addr(3), page.Size)
	uffdtest.WaitMessage(t, c.FD)
	t.Cleanup(func() {
		_ = c.FD.Close()
		unmapped.Wait(t)
	})
	moved := j.slots(st.s[0].id, nil)
	b := slotOf(&moved[0])
	b[0] = slotRemap
	for i, word := range []page.Addr{page.Addr(c.Start), page.Addr(c.Start) + 1<<30, page.Size} {
		order64.PutUint64(b[8+8*i:], uint64(word))
	}
	e, err := parseSlot(b)
	if err != nil {
		t.Fatal(err)
	}
	j.keep(1)
	if err := st.change(st.s[0], e); err != nil || len(st.s[0].fresh) != 1 {
		t.Fatalf("%v; %d events are fresh", err, len(st.s[0].fresh))
	}
	st.s[0].look = &lookOut{tasks: []string{st.task}, ran: map[string]*runTime{}}
	return st
}

func (st *starving) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(st.task, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// latest is the kind of the last slot of the log.
func (st *starving) latest() byte { return slotOf(&st.journal.log[st.journal.pos-1])[0] }

// Who touches memory of another process is served while a thread is waited for, and the look goes on.
func TestOthersAreServedDuringALook(t *testing.T) {
	st := starve(t, t.Context())
	other := st.children[1]
	touched := other.Load(other.Addr(1))
	uffdtest.WaitMessage(t, other.FD)
	if n, err := st.readAll(); n != 1 || err != nil || len(st.queue) != 1 || st.queue[0].s != st.s[1] {
		t.Fatalf("%d messages read, %v, %d faults", n, err, len(st.queue))
	}
	if st.s[0].look == nil || !st.s[0].unsettled() || st.latest() != slotRemap {
		t.Errorf("the look is over, and the log ends with %#x", st.latest())
	}
	st.zeros = make([]byte, maxZero)
	st.makeRests()
	defer st.dropRests(nil)
	st.serve()
	touched.Wait(t)
	st.write(t, "syscall", "-1 0x7ffc 0x7f00\n")
	if _, err := st.readAll(); err != nil || st.s[0].look != nil || len(st.s[0].fresh) > 0 {
		t.Errorf("%v; the look goes on: %v, with %d events", err, st.s[0].look != nil, len(st.s[0].fresh))
	}
}

// A look ends with the pager. What it was for is left to a successor, who has seen nothing of it.
func TestLookEndsWithThePager(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	st := starve(t, ctx)
	cancel()
	if _, err := st.readAll(); !errors.Is(err, context.Canceled) || st.s[0].look != nil {
		t.Errorf("%v; the look goes on: %v", err, st.s[0].look != nil)
	}
	if !st.s[0].unsettled() || st.latest() != slotRemap {
		t.Errorf("the log ends with %#x", st.latest())
	}
	if _, ok := st.lookBefore(&space{model: &model{pid: computing(t)}}, func() bool { return true }); ok {
		t.Error("something is read after a look that was ended")
	}
}

// A look at all processes gives up after a moment, which it takes from no budget.
func TestLooksAtAllHaveNoBudget(t *testing.T) {
	st := starve(t, t.Context())
	l, p := st.s[0].look, patience{last: time.Now()}
	l.all = true
	over, err := l.look(t.Context(), &p, func() bool { return true }, func() bool { return true })
	if !over || !errors.Is(err, errUnsure) || p.spent > 0 {
		t.Errorf("over %v, %v; it took %v from the budget", over, err, p.spent)
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
