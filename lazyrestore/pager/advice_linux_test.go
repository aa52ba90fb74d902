package pager

import (
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd"
)

func numbered(from, to page.Addr) page.Range {
	return page.Range{Start: from * page.Size, End: to * page.Size}
}

func TestLookAtThreads(t *testing.T) {
	everywhere := page.Range{End: 1 << 63}
	for _, c := range []struct {
		name, line string
		calls      []advice
		running    bool
	}{
		{name: "it runs", line: "running\n", running: true},
		{name: "no call", line: "-1 0x7ffc 0x7f00\n"},
		{name: "gone", line: ""},
		{name: "read", line: "0 0x3 0x1000 0x1000 0x0 0x0 0x0 0x7ffc 0x7f00\n"},
		{name: "munmap", line: "11 0x1000 0x1000 0x0 0x0 0x0 0x0 0x7ffc 0x7f00\n"},
		{
			name: "madvise dontneed", line: "28 0x1000 0x1001 0x4 0x0 0x0 0x0 0x7ffc 0x7f00\n",
			calls: []advice{{numbered(1, 3), unix.MADV_DONTNEED}},
		},
		{
			name: "its upper half does not count", line: "28 0x1000 0x1000 0xffffffff00000009 0x0 0x0 0x0 0x7ffc 0x7f00\n",
			calls: []advice{{numbered(1, 2), unix.MADV_REMOVE}},
		},
		{name: "populate raises nothing", line: "28 0x1000 0x1000 0x16 0x0 0x0 0x0 0x7ffc 0x7f00\n"},
		{name: "no memory", line: "28 0x1000 0x0 0x4 0x0 0x0 0x0 0x7ffc 0x7f00\n"},
		{
			name: "process_madvise", line: "440 0x3 0x7ffc 0x1 0x4 0x0 0x0 0x7ffc 0x7f00\n",
			calls: []advice{{everywhere, unix.MADV_DONTNEED}},
		},
		{name: "short", line: "28 0x1000 0x1000\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			call, asleep := parseCall(c.line)
			if asleep == c.running {
				t.Errorf("asleep is %v", asleep)
			}
			var l lookOut
			l.take(call, "7")
			if diff := cmp.Diff(c.calls, l.advice, cmp.AllowUnexported(advice{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// What nobody was seen to drop or remove is lost where it is missing, for all who
// share it, and for a successor.
func TestUnseenRemovalIsALoss(t *testing.T) {
	t.Run("where it is", func(t *testing.T) { testUnseenRemoval(t, testBase) })
	// A move that brings it there is held.
	t.Run("where it comes to", func(t *testing.T) { testUnseenRemoval(t, testBase+1<<20) })
}

func testUnseenRemoval(t *testing.T, at page.Addr) {
	const pages, here = 8, 2 // the first of them are there
	se := fakeSessionAt(t, page.ImageShared, pages, plainSource)
	l, err := newLayout([]page.Mapping{{Range: page.RangeOf(testBase, pages*page.Size), Image: page.ImageShared, PageSize: page.Size, Shared: true}})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{}
	mem := &fakeMemory{}
	s := newSpace(se.pages, w.add(-1, 1, l), nil, mem, nil)
	m, err := w.apply(s.id, event{kind: eventFork, fd: -1})
	if err != nil {
		t.Fatal(err)
	}
	child := newSpace(se.pages, m, nil, mem, s)
	se.spaces.Store(&[]*space{s, child})
	expected := newSpace(se.pages, w.add(-1, 2, l.clone()), nil, mem, nil)
	se.expected = append(se.expected, expected)
	if at != testBase {
		s.held = append(s.held, event{kind: eventRemap, from: page.RangeOf(testBase, pages*page.Size), to: at})
	}
	j, err := newJournal(w)
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	r := &reader{worker: *se.newWorker("reader"), world: w, journal: j}
	defer r.close()
	s.settle(0, here)

	b := make([]byte, uffd.MsgSize)
	b[0] = slotRemove
	order64.PutUint64(b[8:], uint64(at))
	order64.PutUint64(b[16:], uint64(at+6*page.Size))
	msg, err := uffd.ParseMsg(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.changed(s, &msg, seenCalls{looked: true}); err != nil {
		t.Fatal(err)
	}
	for n := range pages {
		if want := here <= n && n < 6; s.isLost(n) != want {
			t.Errorf("page %d of the process is lost: %v", n, s.isLost(n))
		}
		if want := n < 6; child.isLost(n) != want {
			t.Errorf("page %d of the child is lost: %v", n, child.isLost(n))
		}
		if want := n < 6; expected.isLost(n) != want {
			t.Errorf("page %d of the one to come is lost: %v", n, expected.isLost(n))
		}
	}
	var unknown []page.Range
	se.unknown(s, func(r page.Range) { unknown = append(unknown, r) })
	if want := []page.Range{page.RangeOf(testBase, 6*page.Size)}; !slices.Equal(unknown, want) {
		t.Errorf("nobody knows what %v holds, want %v", unknown, want)
	}
	if err := se.lost.err(); !errors.Is(err, errUnseenRemoval) {
		t.Errorf("the loss is told as %v", err)
	}
	state := make([]byte, j.size)
	if _, err := unix.Pread(j.file, state, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := replay(state); !errors.Is(err, errState) {
		t.Errorf("a successor reads the state: %v", err)
	}
}

// Of what has come, and of what the image has nothing, as the ends of a mapping that are registered with the rest, nothing is
// lost by what nobody was seen to drop or remove.
func TestUnseenRemovalOfWhatIsNotMissing(t *testing.T) {
	const stored, mapped, here = 8, 16, 2 // the first of them are there
	for name, c := range map[string]struct{ from, to int }{"there": {0, here}, "not stored": {stored, mapped}} {
		t.Run(name, func(t *testing.T) {
			se := fakeSessionAt(t, page.ImageShared, stored, plainSource)
			l, err := newLayout([]page.Mapping{{Range: page.RangeOf(testBase, mapped*page.Size), Image: page.ImageShared, PageSize: page.Size, Shared: true}})
			if err != nil {
				t.Fatal(err)
			}
			w := &world{}
			s := newSpace(se.pages, w.add(-1, 1, l), nil, &fakeMemory{}, nil)
			se.spaces.Store(&[]*space{s})
			j, err := newJournal(w)
			if err != nil {
				t.Fatal(err)
			}
			defer j.close()
			r := &reader{worker: *se.newWorker("reader"), world: w, journal: j}
			defer r.close()
			s.settle(0, here)

			removed := page.Range{Start: testBase + page.Addr(c.from)<<page.Shift, End: testBase + page.Addr(c.to)<<page.Shift}
			b := make([]byte, uffd.MsgSize)
			b[0] = slotRemove
			order64.PutUint64(b[8:], uint64(removed.Start))
			order64.PutUint64(b[16:], uint64(removed.End))
			msg, err := uffd.ParseMsg(b)
			if err != nil {
				t.Fatal(err)
			}
			if err := r.changed(s, &msg, seenCalls{looked: true}); err != nil {
				t.Fatal(err)
			}
			if err := se.lost.err(); err != nil {
				t.Error(err)
			}
			if s.fills(removed) {
				t.Error("the image still fills it")
			}
			if got := s.left.Load(); got != stored-here {
				t.Errorf("%d pages are missing, want %d", got, stored-here)
			}
			state := make([]byte, j.size)
			if _, err := unix.Pread(j.file, state, 0); err != nil {
				t.Fatal(err)
			}
			if _, err := replay(state); err != nil {
				t.Error(err)
			}
		})
	}
}

// What a removal leaves of shared memory is known only from the look at who
// asked for it.
func TestJudgeRemovals(t *testing.T) {
	kept, removed := keptBy([]advice{
		{numbered(0, 10), unix.MADV_DONTNEED},
		{numbered(5, 20), unix.MADV_REMOVE},
		{numbered(15, 30), unix.MADV_FREE},
	})
	if diff := cmp.Diff([]page.Range{numbered(0, 5), numbered(20, 30)}, slices.Collect(kept.All())); diff != "" {
		t.Error(diff)
	}
	for _, c := range []struct {
		name   string
		seen   seenCalls
		kind   eventKind
		from   page.Range
		kept   bool
		unseen bool
	}{
		{name: "dropped", seen: seenCalls{true, kept, removed}, kind: eventRemove, from: numbered(0, 5), kept: true},
		{name: "removed", seen: seenCalls{true, kept, removed}, kind: eventRemove, from: numbered(5, 20)},
		{name: "by nobody", seen: seenCalls{true, kept, removed}, kind: eventRemove, from: numbered(30, 31), unseen: true},
		{name: "partly by nobody", seen: seenCalls{true, kept, removed}, kind: eventRemove, from: numbered(25, 31), unseen: true},
		{name: "of two", seen: seenCalls{true, kept, removed}, kind: eventRemove, from: numbered(4, 6), unseen: true},
		{name: "unmapped", seen: seenCalls{looked: true}, kind: eventUnmap, from: numbered(0, 5)},
		{name: "nobody looked", kind: eventRemove, from: numbered(0, 5)},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := event{kind: c.kind, from: c.from}
			if err := c.seen.judge(&e); errors.Is(err, errUnseenRemoval) != c.unseen {
				t.Errorf("error %v", err)
			}
			if e.kept != c.kept {
				t.Errorf("kept is %v", e.kept)
			}
		})
	}
}

// After a look in which there was nothing to be told any more nothing is read: who has asked
// for what comes then was not seen.
func TestLookInVain(t *testing.T) {
	r := &reader{ctx: t.Context()}
	for _, pid := range []int{os.Getpid(), 0} {
		s := &space{model: &model{pid: pid}}
		if _, ok := r.lookBefore(s, func() bool { return false }); ok {
			t.Errorf("process %d: something is read after it", pid)
		}
	}
	s := &space{model: &model{pid: 1<<31 - 1}} // gone
	if seen, ok := r.lookBefore(s, func() bool { return true }); !ok || !seen.looked {
		t.Errorf("of a process that is gone: %+v, %v", seen, ok)
	}
}
