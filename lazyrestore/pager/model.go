package pager

import (
	"fmt"
	"slices"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// An eventKind is what a process did to its own memory while pages of it were
// missing, as userfaultfd's events tell it.
type eventKind uint8

const (
	eventFork   eventKind = iota + 1 // the process forked: a new address space with its own uffd
	eventRemap                       // from moved to to
	eventRemove                      // from is zero from now on, and still registered
	eventUnmap                       // from is gone
	eventDrop                        // the pager has let the space go: all resident, or the process has ended
	eventCame                        // the space that was expected is there
	eventForce                       // what is early has waited for too long
	eventLeave                       // leave was under way when what is fresh was told
	eventLooked                      // all such calls were told, if sure
)

// An event is one record of the log. Which fields count depends on the kind.
type event struct {
	kind eventKind
	from page.Range
	to   page.Addr
	fd   int  // of the child's uffd, or of the one that came
	kept bool // by eventRemove: shared memory keeps its content
	sure bool // by eventLooked
	// By eventRemap: it was seen that the call has left the place mapped.
	stays bool
	// Of eventLeave, whose range is from.
	moves bool
	tid   int
}

// A model is what events have made of one address space: pure data that the
// living pager acts on, and that a successor gets by replaying the log.
type model struct {
	id  uint32 // counts spaces from 0, in order of their appearance
	fd  int    // the space's uffd in the descriptor table shared with the keeper; -1 until it has come
	pid int    // 0 for a forked child, whose pid no event tells
	layout
	registered page.Set  // where faults may come from, as far as is known
	leaving    page.Set  // of that: what has moved away, and is not said to be unmapped yet
	emptied    page.Set  // of that: where shared memory may be mapped that holds zeros, and is in the layout no more
	held       []event   // that are early, as they were told
	moving     bool      // the process has moved memory
	taken      bool      // who had the uffd before may have it still; a successor's always is
	fresh      []event   // of which it was not looked yet what they have to do with calls under way
	calls      []leave   // that were seen since
	begun      []leave   // those of which it was told where to, and may not be told that nothing is left
	vacant     []vacancy // see limbo.go
	// gone collects the image ranges that events have cut out of the layout,
	// for whoever keeps books on them; a replay has no use for it.
	gone []page.Range
}

// A world is all address spaces that one pager serves.
type world struct {
	next   uint32 // id of the next space
	spaces []*model
	// dropped is, without what it missed, the space that was let go of last. Until the next
	// snapshot: whoever wrote down that it is may not have closed its uffd since.
	dropped *model
	// removed is image addresses of shared memory that was removed: zero, wherever it is mapped again. Of what was
	// removed before a snapshot that was inherited nothing is known.
	removed   page.Set
	inherited bool
}

// add enters a space that is filled by maps.
func (w *world) add(fd, pid int, l layout) *model {
	m := &model{id: w.next, fd: fd, pid: pid, layout: l}
	for _, p := range l.byProc {
		m.registered.Add(p.Range)
	}
	w.next++
	w.spaces = append(w.spaces, m)
	return m
}

func (w *world) find(id uint32) *model {
	for _, m := range w.spaces {
		if m.id == id {
			return m
		}
	}
	return nil
}

// apply changes the world as e, an event of the space id, says, or holds e until
// it may. For a fork it returns the child. An event of a space that is not there is an error: the
// order of the log is broken.
func (w *world) apply(id uint32, e event) (*model, error) {
	m := w.find(id)
	if m == nil {
		return nil, fmt.Errorf("event %d of space %d, which is not there", e.kind, id)
	}
	switch {
	case e.kind == eventLeave:
		m.calls = append(m.calls, leave{e.from, e.moves, e.tid})
	case e.kind == eventLooked:
		return nil, w.looked(m, e.sure)
	case e.kind == eventFork, e.kind == eventForce:
		if err := w.looked(m, false); err != nil {
			return nil, err
		}
		return w.change(m, e)
	case e.kind == eventDrop, e.kind == eventCame:
		return w.change(m, e)
	case len(m.fresh) > 0, m.isDoubtful(&e):
		m.fresh = append(m.fresh, e)
	default:
		return nil, w.tell(m, e)
	}
	return nil, nil
}

// tell applies e, which is told just now, or holds it.
func (w *world) tell(m *model, e event) error {
	if e.kind == eventUnmap {
		m.end(leave{e.from, true, 0})
	}
	if m.isEarly(&e, m.held) {
		w.hold(m, e)
		return nil
	}
	_, err := w.change(m, e)
	w.follow(m)
	return err
}

// change does what e, of m, says.
func (w *world) change(m *model, e event) (child *model, err error) {
	switch e.kind {
	case eventFork:
		child := m.fork(w.next, e.fd)
		w.next++
		w.spaces = append(w.spaces, child)
		w.force(child) // nothing that it waits for will be told of the child
		child.restore()
		return child, nil
	case eventRemap, eventRemove, eventUnmap:
		w.changeMemory(m, e)
	case eventCame:
		m.fd = e.fd
	case eventForce:
		w.force(m)
		m.restore()
		m.begun = nil
	case eventDrop:
		w.dropped = &model{id: m.id, fd: m.fd, pid: m.pid, registered: m.registered, moving: m.moving}
		for i := range w.spaces {
			if w.spaces[i] == m {
				w.spaces = append(w.spaces[:i:i], w.spaces[i+1:]...)
				break
			}
		}
	default:
		return nil, fmt.Errorf("unknown event %d of space %d", e.kind, m.id)
	}
	return nil, nil
}

// changeMemory does what e, of m, says of memory.
func (w *world) changeMemory(m *model, e event) {
	m.moving = m.moving || e.kind == eventRemap
	if i := m.vacancyOf(&e); i >= 0 {
		m.claim(i, e)
		return
	}
	m.follow(e)
	switch e.kind {
	case eventRemap:
		m.remap(e.from, e.to, e.stays)
	case eventRemove:
		w.remove(m, e)
	default: // an unmap
		m.drop(e.from)
	}
}

func (m *model) fork(id uint32, fd int) *model {
	return &model{
		id: id, fd: fd, layout: m.layout.clone(),
		registered: m.registered.Clone(), leaving: m.leaving.Clone(), emptied: m.emptied.Clone(), held: slices.Clone(m.held),
		moving: m.moving, vacant: cloneVacant(m.vacant),
	}
}

// forget cuts r out of the layout and returns what was there.
func (m *model) forget(r page.Range) []page.Mapping {
	if r.Empty() {
		return nil
	}
	cut := m.cut(r)
	for _, p := range cut {
		m.gone = append(m.gone, p.ImageRange())
	}
	return cut
}

// remap moves memory. All of it was registered, also what it had grown by; but what shared memory
// had grown by stays out of the books, or it would be taken for emptied. It stays
// mapped where it was, if that is known.
func (m *model) remap(from page.Range, to page.Addr, stays bool) {
	dest := page.RangeOf(to, from.Len())
	m.apart = m.apart || m.shares(from)
	grown := m.sharedGrowth(from)
	m.moveEmptied(from, to)
	m.forget(dest)
	var shared []page.Mapping
	for i := m.search(from.Start); stays && i < len(m.byProc) && m.byProc[i].Start < from.End; i++ {
		if p := m.byProc[i]; p.Shared && !from.Overlaps(dest) {
			shared = append(shared, cutProc(p, from))
		}
	}
	m.move(from.Start, to, from.Len())
	m.registered.Add(dest)
	m.leaving.Remove(dest)
	// The old range may stay registered (MREMAP_DONTUNMAP): an UNMAP says so
	// where it does not. Then it is private memory that is empty, or shared memory as before, which is
	// taken for that only where it is known: before the UNMAP other memory may grow there.
	for _, p := range shared {
		m.insert(p)
	}
	m.registered.Add(from)
	m.leaving.Add(from)
	for _, r := range grown {
		m.registered.Remove(r)
		m.registered.Remove(r.Shift(to - from.Start))
	}
}

// moveEmptied notes where what was emptied of from moves. What the books do not know there may be what that has grown by.
func (m *model) moveEmptied(from page.Range, to page.Addr) {
	if m.emptied.Empty() {
		return
	}
	moved := page.SetOf(from)
	for known := range m.registered.Within(from) {
		moved.Remove(known)
	}
	for r := range m.emptied.Within(from) {
		moved.Add(r)
	}
	for r := range moved.All() {
		m.emptied.Add(r.Shift(to - from.Start))
	}
}

// sharedGrowth is what shared memory in r has grown by there, of which the books do not know.
func (m *model) sharedGrowth(r page.Range) (grown []page.Range) {
	if !m.sharesAny() {
		return nil
	}
	unknown := page.SetOf(r)
	for known := range m.registered.Within(r) {
		unknown.Remove(known)
	}
	for g := range unknown.All() {
		if p, ok := m.sharedBelow(g.Start); ok && p.End > r.Start {
			grown = append(grown, g)
		}
	}
	return grown
}

// remove makes private memory zero. So is shared memory unless it is kept, and
// then wherever else it is mapped, in this and every other space.
func (w *world) remove(m *model, e event) {
	if e.kept && m.shares(e.from) {
		return // a range of one event lies in one mapping
	}
	if m.pid == 0 && !e.kept { // else it is seen (removeGrown)
		w.noteRemoved(m, e.from)
	}
	whole, _ := m.wholePages(e.from)
	for _, gone := range m.forget(whole) {
		if !gone.Shared {
			continue
		}
		m.emptied.Add(gone.Range)
		w.removeShared(gone.ImageRange())
	}
}

// removeShared makes the image range r, of shared memory, zero wherever it is mapped.
func (w *world) removeShared(r page.Range) {
	w.removed.Add(r)
	for _, other := range w.spaces {
		var also []page.Range
		other.places(r, func(p page.Mapping) { also = append(also, p.Range) })
		for _, r := range also {
			other.forget(r)
			other.emptied.Add(r)
		}
	}
}

// noteRemoved notes what may be removed, of from, where shared memory has grown to, of which the books do not know.
func (w *world) noteRemoved(m *model, from page.Range) {
	unknown := page.SetOf(from)
	for r := range m.registered.Within(from) {
		unknown.Remove(r)
	}
	for r := range unknown.All() {
		if p, ok := m.sharedBelow(r.Start); ok && !m.parted(p, r.Start) {
			w.removed.Add(ofObject(p, page.RangeOf(p.ImageAddr(r.Start), r.Len())))
		}
	}
}

// shares reports whether r holds shared memory that the image fills.
func (l *layout) shares(r page.Range) bool {
	for i := l.search(r.Start); i < len(l.byProc) && l.byProc[i].Start < r.End; i++ {
		if l.byProc[i].Shared {
			return true
		}
	}
	return false
}

// mayShare reports whether there may be shared memory at a, which no mapping of the layout holds: what
// was emptied, or what a mapping has grown by.
func (m *model) mayShare(a page.Addr) bool {
	i := m.search(a)
	return !m.emptied.Empty() || i > 0 && m.byProc[i-1].Shared
}

// sharesAny reports whether there may be shared memory that the image fills.
func (l *layout) sharesAny() bool {
	return l.shared && len(l.byImage) > 0
}
