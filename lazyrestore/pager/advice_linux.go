package pager

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

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
// knows what the memory holds: what is missing of it is lost.

// errUnseenRemoval is of shared memory that was dropped or removed, nobody
// knows which.
var errUnseenRemoval = errors.New("shared memory that is missing was taken away by a call that was not seen")

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

// settleTime bounds how long a look at all processes waits for a thread on its way into its sleep.
const settleTime = time.Millisecond

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

// adviceCalls lists the calls of madvise that threads of pid are in, as long as need: as
// with leaves each was seen asleep once, or busy. For a
// forked child, whose pid is not known (0), it lists those of all processes.
// A thread has put its event into the queue a moment before it can be seen to
// sleep, and one that was woken looks for a moment as if it slept still: that another one is seen in
// a call is no reason to look no further. Where it cannot be seen in time what all are in, the calls are
// those that were. The error is that it could not look (see noRoom).
func adviceCalls(pid int, p *patience, need func() bool) ([]advice, error) {
	if pid != 0 {
		l, err := lookAt(pid, p, need)
		if !noRoom(err) {
			err = nil
		}
		return l.advice, err
	}
	for end := time.Now().Add(settleTime); ; {
		l := look{}
		l.everywhere()
		if l.err != nil || l.raising || !l.running || time.Now().After(end) {
			return l.calls, l.err
		}
	}
}

// A look is at what the threads of all processes are doing.
type look struct {
	calls   []advice
	raising bool  // some thread is in a call that raises events
	running bool  // of some thread it is not known what it is in
	err     error // there was no room to look at all of them
}

// failed notes err, unless it is that somebody has gone meanwhile.
func (l *look) failed(err error) {
	if noRoom(err) {
		l.err = err
	}
}

func (l *look) everywhere() {
	all, err := os.ReadDir("/proc")
	if err != nil {
		l.failed(err)
		return
	}
	for _, p := range all {
		if _, err := strconv.Atoi(p.Name()); err == nil {
			l.process(p.Name())
		}
	}
}

func (l *look) process(pid string) {
	dir := "/proc/" + pid + "/task/"
	tasks, err := os.ReadDir(dir)
	if err != nil {
		l.failed(err)
		return
	}
	for _, t := range tasks {
		c, asleep, err := callOf(dir + t.Name())
		if err != nil {
			l.failed(err)
			continue
		}
		l.thread(c, asleep)
	}
}

// thread takes in what a thread is in.
func (l *look) thread(c sysCall, asleep bool) {
	if !asleep {
		l.running = true
		return
	}
	switch c.nr {
	case unix.SYS_MADVISE, unix.SYS_PROCESS_MADVISE:
		if a, ok := c.advice(); ok {
			l.raising = true
			l.calls = append(l.calls, a)
		}
	case unix.SYS_MUNMAP, unix.SYS_MREMAP, unix.SYS_MMAP, unix.SYS_BRK, unix.SYS_SHMDT,
		unix.SYS_FORK, unix.SYS_VFORK, unix.SYS_CLONE, unix.SYS_CLONE3:
		l.raising = true
	}
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
