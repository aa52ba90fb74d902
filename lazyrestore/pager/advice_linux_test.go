package pager

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

func numbered(from, to page.Addr) page.Range {
	return page.Range{Start: from * page.Size, End: to * page.Size}
}

func TestLookAtThreads(t *testing.T) {
	everywhere := page.Range{End: 1 << 63}
	for _, c := range []struct {
		name, line       string
		calls            []advice
		raising, running bool
	}{
		{name: "it runs", line: "running\n", running: true},
		{name: "no call", line: "-1 0x7ffc 0x7f00\n"},
		{name: "gone", line: ""},
		{name: "read", line: "0 0x3 0x1000 0x1000 0x0 0x0 0x0 0x7ffc 0x7f00\n"},
		{name: "munmap", line: "11 0x1000 0x1000 0x0 0x0 0x0 0x0 0x7ffc 0x7f00\n", raising: true},
		{
			name: "madvise dontneed", line: "28 0x1000 0x1001 0x4 0x0 0x0 0x0 0x7ffc 0x7f00\n",
			calls: []advice{{numbered(1, 3), unix.MADV_DONTNEED}}, raising: true,
		},
		{
			name: "its upper half does not count", line: "28 0x1000 0x1000 0xffffffff00000009 0x0 0x0 0x0 0x7ffc 0x7f00\n",
			calls: []advice{{numbered(1, 2), unix.MADV_REMOVE}}, raising: true,
		},
		{name: "populate raises nothing", line: "28 0x1000 0x1000 0x16 0x0 0x0 0x0 0x7ffc 0x7f00\n"},
		{name: "no memory", line: "28 0x1000 0x0 0x4 0x0 0x0 0x0 0x7ffc 0x7f00\n"},
		{
			name: "process_madvise", line: "440 0x3 0x7ffc 0x1 0x4 0x0 0x0 0x7ffc 0x7f00\n",
			calls: []advice{{everywhere, unix.MADV_DONTNEED}}, raising: true,
		},
		{name: "short", line: "28 0x1000 0x1000\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var l look
			l.thread(c.line)
			if diff := cmp.Diff(look{c.calls, c.raising, c.running}, l, cmp.AllowUnexported(look{}, advice{})); diff != "" {
				t.Error(diff)
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
