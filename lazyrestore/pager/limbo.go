package pager

import (
	"cmp"
	"slices"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// What two threads did may be told in the wrong order, and books do not show all
// that was where: that a mapping grows is not told, nor what else lay in a range that is unmapped. So
// when a move was read, and before anything else is, it is looked what calls the
// threads are in (calls_linux.go). Whoever is in a call that takes memory away from where the
// move has come to was there before: nobody but the kernel can know yet of what has come. What such a call takes leaves its
// place in the books at once, for limbo: a range of the layout above all addresses of
// a process. There it waits until it is told where it has moved, or that it is gone; what is at
// its place meanwhile is another's. If nothing is told of the call when nothing is
// to be told any more, it was none that counts, and the memory goes back to where it would be without it.
//
// It is the same where memory leaves: who is in a call that moves memory from
// there has done so before, unless his memory has grown there since, for then it begins below.

// A leave is a call under way by which memory leaves a place. It is still to be told that
// it has: of one that moves, where to, and then, as of others, that nothing is left.
type leave struct {
	page.Range
	moves bool
	tid   int // the thread's; 0: not known
}

// tells reports whether e is what is told next of l.
func (l leave) tells(e *event) bool {
	switch e.kind {
	case eventRemap:
		return l.moves && l.Range == e.from
	case eventUnmap:
		return !l.moves && l.Range == e.from
	default:
		return false
	}
}

// A vacancy is a leave whose memory is in limbo.
type vacancy struct {
	leave
	slot uint8
	// back is where its memory would be without that call: a layout of process
	// addresses, whose image addresses are those in limbo.
	back layout
}

const (
	// limboStep is above all addresses of a process.
	limboStep = page.Addr(1) << 57
	// maxLimbo is how many vacancies have room above each other.
	maxLimbo = 126
)

func cloneVacant(list []vacancy) []vacancy {
	list = slices.Clone(list)
	for i := range list {
		list[i].back = list[i].back.clone()
	}
	return list
}

// limbo is where the memory of v is.
func (v *vacancy) limbo() page.Range { return v.Shift(limboStep * page.Addr(v.slot)) }

// unsettled reports whether it is not known what is where.
func (m *model) unsettled() bool { return len(m.held)+len(m.fresh)+len(m.vacant) > 0 }

// isDoubtful reports whether something may still be told that was done before e, which is
// told just now.
func (m *model) isDoubtful(e *event) bool {
	switch e.kind {
	case eventRemap:
		return true
	case eventUnmap:
		return m.moving && m.fills(e.from) && m.vacancyOf(e) < 0
	default:
		return false
	}
}

// vacancyOf is the vacancy of which e tells; -1: none.
func (m *model) vacancyOf(e *event) int {
	return slices.IndexFunc(m.vacant, func(v vacancy) bool { return v.tells(e) })
}

// concerns reports whether l may matter to what is fresh.
func (m *model) concerns(l leave) bool {
	return overlaps(&m.registered, l.Range) || m.hasBegun(l) ||
		slices.ContainsFunc(m.fresh, func(e event) bool { return l.Overlaps(e.from) || l.Overlaps(e.into()) })
}

// hasBegun reports whether it was told where l moves to.
func (m *model) hasBegun(l leave) bool {
	return slices.ContainsFunc(m.begun, func(b leave) bool { return b.Range == l.Range && (b.tid == l.tid || b.tid == 0) })
}

// looked applies what is fresh. If sure, all calls were noted that were under way, and
// concern it, when the last of that was told.
func (w *world) looked(m *model, sure bool) error {
	fresh, calls := m.fresh, m.calls
	m.fresh, m.calls = nil, nil
	if sure {
		m.begun = slices.DeleteFunc(m.begun, func(b leave) bool { return b.tid != 0 && !slices.Contains(calls, b) })
	}
	for i, e := range fresh {
		var err error
		later := withLater(calls, fresh[i+1:])
		e.stays = sure && e.kind == eventRemap && m.ownCall(&e, later) < 0
		if m.isDoubtful(&e) && m.prepare(e, later, sure && len(m.held) == 0) {
			_, err = w.change(m, e)
		} else {
			err = w.tell(m, e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// prepare makes room for e, when calls were under way; all of them, if sure. It reports whether that
// is all that may have been done before: where a move comes to is free then. It is not if the threads of another
// process have left it, who share the memory, or if limbo has no room.
func (m *model) prepare(e event, calls []leave, sure bool) bool {
	if e.kind == eventUnmap {
		if sure {
			m.vacate(&e, calls)
		}
		return sure
	}
	own := leave{e.from, true, 0}
	i := m.ownCall(&e, calls)
	switch {
	case i >= 0 && sure:
		own = calls[i]
		m.vacate(&e, slices.Delete(calls, i, i+1))
	case sure:
		return false // it leaves its memory mapped, and its thread has gone on
	}
	m.end(own)
	m.begun = append(m.begun, own)
	return sure && !overlaps(&m.registered, e.into())
}

// end notes that the call l, of which it was told where to, has ended.
func (m *model) end(l leave) {
	if i := slices.Index(m.begun, l); i >= 0 {
		m.begun = slices.Delete(m.begun, i, i+1)
	}
}

// withLater is calls, and those of which it was told later, while the others lasted.
func withLater(calls []leave, later []event) []leave {
	list := slices.Clone(calls)
	for _, x := range later {
		l := leave{x.from, x.kind == eventRemap, 0}
		if x.kind == eventUnmap || l.moves && !slices.ContainsFunc(list, l.is) {
			list = append(list, l)
		}
	}
	return list
}

// ownCall is which of calls it is of which e, a move, tells; -1: none. Of several that
// move from the same place it is the one whose memory is in limbo for longest, or one of which nothing was told.
func (m *model) ownCall(e *event, calls []leave) int {
	v := m.vacancyOf(e)
	own := -1
	for i, l := range calls {
		switch {
		case l.Range != e.from || !l.moves:
		case v >= 0:
			if m.vacant[v].tid == l.tid || m.vacant[v].tid == 0 {
				return i
			}
		case m.hasBegun(l):
			own = i // again
		case !slices.ContainsFunc(m.vacant, func(v vacancy) bool { return v.leave == l }):
			return i
		}
	}
	return own
}

// is reports whether o may be l.
func (l leave) is(o leave) bool {
	return l.Range == o.Range && l.moves == o.moves && (l.tid == o.tid || l.tid == 0 || o.tid == 0)
}

// vacate puts into limbo what those calls take that were done before e, and what those take that were
// done before them.
func (m *model) vacate(e *event, calls []leave) {
	rest := m.unknown(calls)
	own := leave{e.from, e.kind == eventRemap, 0}
	if m.vacancyOf(e) >= 0 { // what is at its place now is another's
		own = leave{}
	}
	var before []leave
	for n := -1; n < len(before); {
		n = len(before)
		rest = slices.DeleteFunc(rest, func(l leave) bool {
			is := l.Overlaps(e.into()) || l.moves && l.isBefore(own) || slices.ContainsFunc(before, l.isBefore)
			if is {
				before = append(before, l)
			}
			return is
		})
	}
	slices.SortStableFunc(before, compareLeaves)
	for _, l := range before {
		m.empty(l)
	}
}

// isBefore reports whether l took away what was at its place before that which o takes had grown there. If it
// had grown there since, it would begin below.
func (l leave) isBefore(o leave) bool {
	return l.Overlaps(o.Range) && (l.Start > o.Start && (l.moves || o.moves) || l.Start == o.Start && l.moves && !o.moves)
}

// compareLeaves orders calls so that those come first that are before others.
func compareLeaves(a, b leave) int {
	switch {
	case a.Start != b.Start:
		return cmp.Compare(b.Start, a.Start)
	case a.moves == b.moves:
		return 0
	case a.moves:
		return -1
	default:
		return 1
	}
}

// unknown is calls without those that have a vacancy. Those that have moved, and were told that, move no more.
func (m *model) unknown(calls []leave) (list []leave) {
	known := slices.Clone(m.vacant)
	for _, l := range calls {
		l.moves = l.moves && !m.hasBegun(l)
		if i := slices.IndexFunc(known, func(v vacancy) bool { return l.is(v.leave) }); i >= 0 {
			known = slices.Delete(known, i, i+1)
			continue
		}
		list = append(list, l)
	}
	return list
}

// empty puts what l takes into limbo.
func (m *model) empty(l leave) {
	v := vacancy{leave: l, slot: 1}
	for slices.ContainsFunc(m.vacant, func(o vacancy) bool { return o.slot == v.slot }) {
		v.slot++
	}
	if v.slot > maxLimbo || l.End > limboStep {
		return
	}
	v.back.insert(page.Mapping{Range: l.Range, Image: v.limbo().Start, PageSize: page.Size})
	m.shift(l.Range, v.limbo())
	m.vacant = append(m.vacant, v)
}

// shift moves all that the books have of from, which is of the same length as to.
func (m *model) shift(from, to page.Range) {
	m.forget(to)
	m.move(from.Start, to.Start, from.Len())
	for _, s := range []*page.Set{&m.registered, &m.leaving, &m.emptied} {
		var moved []page.Range
		for r := range s.Within(from) {
			moved = append(moved, r.Shift(to.Start-from.Start))
		}
		s.Remove(from)
		for _, r := range moved {
			s.Add(r)
		}
	}
}

// drop takes r out of the books.
func (m *model) drop(r page.Range) {
	m.forget(r)
	m.registered.Remove(r)
	m.leaving.Remove(r)
	m.emptied.Remove(r)
}

// claim applies e, which tells of the vacancy i.
func (m *model) claim(i int, e event) {
	v := &m.vacant[i]
	if e.kind == eventUnmap {
		m.end(leave{e.from, true, v.tid})
		m.drop(v.limbo())
		m.vacant = slices.Delete(m.vacant, i, i+1)
		return
	}
	v.moves, v.back = false, layout{}
	m.apart = m.apart || m.shares(v.limbo())
	for j := range m.vacant {
		m.vacant[j].back.cut(e.into())
	}
	grown := m.sharedGrowth(v.limbo())
	m.moveEmptied(v.limbo(), e.to)
	m.shift(v.limbo(), e.into())
	m.registered.Add(e.into())
	m.leaving.Remove(e.into())
	for _, r := range grown { // stays out of the books, see remap
		m.registered.Remove(r.Shift(e.to - v.limbo().Start))
	}
}

// follow notes e, which is no vacancy's, for what would be without the calls that are in limbo.
func (m *model) follow(e event) {
	for i := range m.vacant {
		v := &m.vacant[i]
		switch {
		case e.kind == eventRemap:
			v.back.cut(e.into())
			v.back.move(e.from.Start, e.to, e.from.Len())
		case !e.kept || !m.shares(v.limbo()):
			v.back.cut(e.from)
		}
	}
}

// restore ends limbo, for nothing is to be told any more.
func (m *model) restore() {
	for _, v := range m.vacant {
		for _, b := range v.back.byProc {
			free := page.SetOf(b.Range)
			for i := m.search(b.Start); i < len(m.byProc) && m.byProc[i].Start < b.End; i++ {
				free.Remove(m.byProc[i].Range)
			}
			for r := range free.All() {
				m.shift(page.RangeOf(b.ImageAddr(r.Start), r.Len()), r)
			}
		}
		m.drop(v.limbo())
	}
	m.vacant = nil
}
