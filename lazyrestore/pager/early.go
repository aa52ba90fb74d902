package pager

import (
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd"
)

// The kernel tells of an munmap or an mremap when it has let go of the address
// space, each thread waits for its own event alone, and an mremap is told in two: the
// move, then that nothing is left where it came from. So what two threads did may be
// told in the wrong order: memory comes to a place, of the kernel's own choice even,
// before it is told that what was there has left. Mostly it is looked who has left it (limbo.go). Where no look is to
// be had, such an event is early: it is held until its place is said to be free, and with it what happened to the
// same memory later.
//
// Nothing is copied into the space meanwhile. The kernel would refuse it anyway
// as long as a change is not told (EAGAIN), which is also how we know that there
// is one. A place may be taken in our books alone, though, after a change that the kernel does
// not tell. When none is to be told any more, the events are taken as they are.
const (
	// earlyPatience is for a kernel that says for ever that one is to be told.
	earlyPatience = int64(10 * time.Second)
	// earlyLook is how often a reader with nothing else to do looks.
	earlyLook = 10 * time.Millisecond
	// maxEarly is more than the threads of a program do meanwhile.
	maxEarly = 2048
)

// into is where an event brings memory; empty for all but a move.
func (e *event) into() page.Range {
	if e.kind != eventRemap {
		return page.Range{}
	}
	return page.RangeOf(e.to, e.from.Len())
}

// isEarly reports whether e, which was told after the events of held, and those are
// early, is early too.
func (m *model) isEarly(e *event, held []event) bool {
	switch e.kind {
	case eventRemap, eventRemove, eventUnmap:
	default:
		return false
	}
	older := m.vacancyOf(e) >= 0 // it is of what was at its place before
	for i := range held {
		h := &held[i]
		switch {
		case e.into().Overlaps(h.into()):
			return true
		case older:
		case e.from.Overlaps(h.from):
			return true // it is of what h moves, or of what follows that
		case !e.from.Overlaps(h.into()):
		case e.kind == eventRemove, !overlaps(&m.registered, e.from):
			return true // it is of what h brings: nothing else is there to go
		case overlaps(&m.leaving, e.from):
			// What was there has moved away: h waits for an UNMAP, and anything
			// else is of what h brings.
			return e.kind != eventUnmap
		}
	}
	return overlaps(&m.registered, e.into())
}

// origins is r, and where the memory is that events which are held bring there.
func (m *model) origins(r page.Range) []page.Range {
	list := []page.Range{r}
	early := slices.Concat(m.held, m.fresh)
	for i := len(early) - 1; i >= 0; i-- {
		h := &early[i]
		for _, o := range slices.Clone(list) {
			if in := o.Intersect(h.into()); !in.Empty() {
				list = append(list, in.Shift(h.from.Start-h.to))
			}
		}
	}
	return list
}

func overlaps(s *page.Set, r page.Range) bool {
	for range s.Within(r) {
		return true
	}
	return false
}

// hold keeps an early event.
func (w *world) hold(m *model, e event) {
	m.held = append(m.held, e)
	if len(m.held) > maxEarly {
		w.force(m)
	}
}

// follow applies the events that are early no more.
func (w *world) follow(m *model) {
	for i := 0; i < len(m.held); {
		if m.isEarly(&m.held[i], m.held[:i]) {
			i++
			continue
		}
		w.next1(m, i)
		i = 0
	}
}

// force applies all events that are held, in the order in which they were told
// as far as need be.
func (w *world) force(m *model) {
	for len(m.held) > 0 {
		w.next1(m, 0)
		w.follow(m)
	}
}

func (w *world) next1(m *model, i int) {
	e := m.held[i]
	m.held = slices.Delete(m.held, i, i+1)
	w.change(m, e)
}

// waitForEarly takes the early events of s as they are when nothing is to be
// told that they could wait for, and so with what is in limbo. The gate is shut.
func (r *reader) waitForEarly(s *space) error {
	if !s.unsettled() {
		s.earlySince = 0
		return nil
	}
	if len(s.fresh) > 0 {
		// A pager that was killed has left them. What the threads are in by now is not what they were in when it
		// read them, and what it has noted of that need not be all.
		if err := r.say(s, event{kind: eventLooked}); err != nil {
			return err
		}
	}
	now := r.now()
	if first := s.firstUnsettled(); s.earlySince == 0 || s.earlyFirst != first {
		s.earlySince, s.earlyFirst = now, first
	}
	if now-s.earlySince < earlyPatience && isChanging(s.u) {
		return nil
	}
	if len(s.held) > 0 {
		r.log.Debug("events came in no order that makes sense", "space", s.id, "held", len(s.held))
	}
	s.earlySince = 0
	return r.say(s, event{kind: eventForce})
}

// firstUnsettled is what is waited for longest: where it brings memory, and what is in limbo.
func (m *model) firstUnsettled() (first [2]page.Range) {
	if len(m.held) > 0 {
		first[0] = m.held[0].into()
	}
	if len(m.vacant) > 0 {
		first[1] = m.vacant[0].limbo()
	}
	return first
}

// byOne is read, one message at a time, up to the first event: faults, which come before
// all events, are still many at a time.
func byOne(read func([]uffd.Msg) (int, error)) func([]uffd.Msg) (int, error) {
	return func(slots []uffd.Msg) (n int, err error) {
		for n < len(slots) {
			k, err := read(slots[n : n+1])
			if err != nil && n > 0 {
				return n, nil // the next read says it again
			}
			if err != nil || k == 0 {
				return n, err
			}
			if n++; slots[n-1].Event() != uffd.EventPagefault {
				break
			}
		}
		return n, nil
	}
}

// say puts list, which nobody else tells, down and applies it. The gate is shut.
func (r *reader) say(s *space, list ...event) error {
	if err := r.journal.room(r.world); err != nil {
		return err
	}
	for _, e := range list {
		r.journal.say(s.id, e)
		if err := r.change(s, e); err != nil {
			return err
		}
	}
	return nil
}

// isChanging reports whether a change of the address space of u is still to be told: the
// kernel counts it before another thread can do the next.
func isChanging(u *uffd.FD) bool {
	return errors.Is(u.WriteProtect(probeAddr, page.Size, 0), unix.EAGAIN)
}

// orderly is the memory of a space into which nothing is copied as long as
// it is not known what is where.
type orderly struct {
	memory
	m *model
}

func (o orderly) Copy(dst uint64, src []byte, mode uffd.CopyMode) (int64, error) {
	if o.m.unsettled() {
		return 0, unix.EAGAIN
	}
	did, err := o.memory.Copy(dst, src, mode)
	return did, o.m.pastEnd(dst, err)
}

func (o orderly) CopyNow(dst uint64, src []byte, mode uffd.CopyMode) (int64, error) {
	if o.m.unsettled() {
		return 0, unix.EAGAIN
	}
	did, err := o.memory.CopyNow(dst, src, mode)
	return did, o.m.pastEnd(dst, err)
}

func (o orderly) ZeroNow(start, length uint64, mode uffd.CopyMode) (int64, error) {
	if o.m.unsettled() {
		return 0, unix.EAGAIN
	}
	did, err := o.memory.ZeroNow(start, length, mode)
	return did, o.m.pastEnd(start, err)
}

func (o orderly) Poison(start, length uint64, mode uffd.CopyMode) (int64, error) {
	if o.m.unsettled() {
		return 0, unix.EAGAIN
	}
	did, err := o.memory.Poison(start, length, mode)
	return did, o.m.pastEnd(start, err)
}

// pastEnd makes ENOENT of the EFAULT of what was to be put into shared memory at addr: the object
// has been truncated, through /proc/PID/map_files, since the fault was raised. Woken, who waits
// there gets SIGBUS of the kernel. In private memory only a mistake of ours gives EFAULT.
func (m *model) pastEnd(addr uint64, err error) error {
	if !errors.Is(err, unix.EFAULT) {
		return err
	}
	if at, ok := m.find(page.Addr(addr)); ok && !at.Shared {
		return err
	}
	return unix.ENOENT
}
