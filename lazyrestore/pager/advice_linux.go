package pager

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// A REMOVE event does not say what caused it. For private memory that is the
// same: the pages are zero. Shared memory keeps its content with MADV_DONTNEED,
// which only takes it out of one page table, and loses it with MADV_REMOVE.
// The thread that asked is held in madvise(2) until the event is read, so what
// it asked for is looked up before that, and only what happened before the look
// may be read after it. A removal that no thread was seen to ask for (by
// io_uring, or in the moment between the look and the read) leaves nobody who
// knows what the memory holds: what is missing of it is lost. Where none is, all may be taken for removed.

// errUnseenRemoval is of shared memory that was dropped or removed, nobody
// knows which.
var errUnseenRemoval = errors.New("shared memory that is missing was taken away by a call that was not seen")

// errPartRemoved is of a huge page of shared memory that is missing: the kernel would have to take away a part of
// it, and does nothing.
var errPartRemoved = errors.New("a part of a shared huge page that is missing was removed")

// seenCalls is what a look before a read of events has seen: the removals that
// leave shared memory its content, and those that do not. The zero value is of
// a space that has no shared memory to lose.
type seenCalls struct {
	looked        bool
	kept, removed page.Set
}

// judge says whether e leaves shared memory its content.
func (c *seenCalls) judge(e *event) error {
	e.kept = c.kept.Covers(e.from)
	if e.kind == eventRemove && c.looked && !e.kept && !c.removed.Covers(e.from) {
		return fmt.Errorf("%v: %w", e.from, errUnseenRemoval)
	}
	return nil
}

// loseUnseen gives up what is missing of the shared memory r of s, in all spaces
// that have it: whoever touches it gets SIGBUS. The gate is shut. No successor
// can be told which pages these are.
func (r *reader) loseUnseen(s *space, removed page.Range, err error) {
	r.log.Error("pages are lost, and touching them raises SIGBUS", "pid", s.pid, "error", err)
	r.lost.add(err)
	r.journal.spoil()
	for _, from := range s.origins(removed) {
		for i := s.search(from.Start); i < len(s.byProc) && s.byProc[i].Start < from.End; i++ {
			gone := cutProc(s.byProc[i], from).ImageRange()
			r.unseen.Add(gone) // for the parts of the index, and the processes, that are to come
			r.segments(gone, func(_ int, sg *segment) {
				for _, o := range append(slices.Clone(*r.spaces.Load()), r.expected...) {
					r.loseIn(o, sg)
				}
			})
		}
	}
	if r.onLost == Kill && s.id == 0 && r.target.PidFD >= 0 {
		r.note(unix.PidfdSendSignal(r.target.PidFD, unix.SIGKILL, nil, 0))
	}
}

// loseIn notes what s has lost by loseUnseen of the segment sg; nil: it is not opened.
func (se *session) loseIn(s *space, sg *segment) {
	if sg == nil || sg.lost() {
		return
	}
	for r := range se.unseen.Within(sg.within) {
		s.loseRange(sg, r)
	}
}

// unknown calls f with the memory that s has lost by loseUnseen. The caller is inside the gate.
func (se *session) unknown(s *space, f func(page.Range)) {
	for _, m := range s.byProc {
		for r := range se.unseen.Within(m.ImageRange()) {
			se.pages.segments(r, func(k int, sg *segment) {
				part := r.Intersect(se.pages.SegmentRange(k))
				if sg != nil && !sg.lost() {
					i, j := sg.numbers(part)
					if s.lost.nextSet(i, j) == j {
						return // it was there
					}
				}
				f(cutImage(m, part).Range)
			})
		}
	}
}

// madvDontNeedLocked is MADV_DONTNEED_LOCKED of linux/mman.h.
const madvDontNeedLocked = 24

// An advice is a call of madvise that a thread of the process is in.
type advice struct {
	page.Range
	advice int
}

// keptBy says of which memory the calls take pages out of a page table alone,
// and of which a call is about to remove the content, whatever others do.
func keptBy(calls []advice) (kept, removed page.Set) {
	for _, c := range calls {
		if c.advice == unix.MADV_REMOVE {
			removed.Add(c.Range)
		} else {
			kept.Add(c.Range)
		}
	}
	for r := range removed.All() {
		kept.Remove(r)
	}
	return kept, removed
}

// lookBefore looks, before something is read of s that it has to tell, who is about to drop or remove
// shared memory. Without ok nothing is to be read after it: there was no room to look, or what was to be told
// was not told in the end, and of what may be told since nothing was seen. Where it cannot be seen in
// time what all are in, it has what was seen.
func (r *reader) lookBefore(s *space, need func() bool) (seen seenCalls, ok bool) {
	l, err := lookAt(r.ctx, s.pid, &r.elders, &r.patience, need)
	if noRoom(err) {
		r.crowd(s, "a look at who raised it", err)
		return seen, false
	}
	if err != nil && r.ctx.Err() != nil {
		return seen, false // it is left to a successor
	}
	seen.looked = true
	seen.kept, seen.removed = keptBy(l.advice)
	return seen, !l.idle
}

// advice is that of a call of madvise(2), or of one of
// process_madvise(2), whose ranges lie in memory: it may be for any. Advice that
// raises no event is none.
func (c *sysCall) advice() (advice, bool) {
	r, what := page.Range{End: page.Addr(1) << 63}, c.args[3]
	if c.nr == unix.SYS_MADVISE {
		r = page.Range{Start: page.Addr(c.args[0]), End: (page.Addr(c.args[0]) + page.Addr(c.args[1])).Up()}
		what = c.args[2]
	}
	a := advice{r, int(int32(uint32(what)))}
	switch a.advice {
	case unix.MADV_DONTNEED, madvDontNeedLocked, unix.MADV_FREE, unix.MADV_REMOVE:
		return a, !r.Empty()
	}
	return advice{}, false
}

// faultsPending reports whether the next message of the uffd is a fault: they
// are read before all events.
func faultsPending(fd int) (bool, error) {
	b, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return false, err
	}
	_, rest, ok := strings.Cut(string(b), "pending:\t")
	return ok && !strings.HasPrefix(rest, "0\n"), nil
}
