package pager

import (
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// A mapping of shared memory that grows (mremap) shows more of its object. Nothing tells of that, and the layout has no
// place for it, but what is missing there is no zero: zeros would be the object's, for all who map it, and
// what the image has for them would never come. So as long as something of shared memory is away (away_linux.go), or is missing
// elsewhere than where a mapping of it may grow to, it is looked in
// /proc/PID/maps what is at an address in no mapping where a fault comes from, and the layout has it from then on if it is that. Of a
// forked child, whose pid is not known, the thread that waits is looked at. Where
// that cannot be seen the page is poisoned if it may be.

// A stretch is a mapping of a process that the layout has not all of.
type stretch struct {
	s *space
	page.Range
	shared bool
	object page.Object // if it is known that it shows that
	image  page.Addr   // then, of its first page
}

// maxStretches bounds how many are remembered.
const maxStretches = 16

// sharedBelow is the mapping of shared memory that is nearest below a, an address in no mapping.
func (l *layout) sharedBelow(a page.Addr) (page.Mapping, bool) {
	i := l.search(a)
	if i == 0 || !l.byProc[i-1].Shared || l.byProc[i-1].PageSize != page.Size {
		return page.Mapping{}, false
	}
	return l.byProc[i-1], true
}

// grown serves a fault from an address in no mapping if shared memory has grown to there, and
// the page is away. If not, ok is false: it is zero.
func (r *reader) grown(f fault) (ok bool) {
	s := f.s
	if !s.shared || !r.world.inherited && s.away.Empty() && !(s.apart && (s.missesShared(r.table) || s.hasLost.Load())) {
		return false
	}
	st, v := r.stretchAt(f)
	switch {
	case v != settled:
		r.finish(f, v)
		return true
	case st == nil, st.shared && st.object.Empty():
		return r.mayBeGrown(f)
	case !st.shared:
		return false
	}
	at := st.image + (f.addr - st.Start)
	stored, waits := r.owesAt(f, st.object.Range, at)
	switch {
	case waits:
		return true
	case !stored:
		return false // its object may have grown, too
	case r.world.inherited && s.registered.Contains(f.addr):
		return false // it was emptied, perhaps by what is known no more: what grows is nowhere in the books
	case r.world.inherited:
		return r.loseGrown(f, at) // it may have been removed before
	}
	r.extend(f, st)
	r.place(f)
	return true
}

// mayBeGrown poisons the page of f if it may be one of shared memory that is missing, for all that the books say.
func (r *reader) mayBeGrown(f fault) bool {
	s := f.s
	m, ok := s.sharedBelow(f.addr)
	if !ok {
		return false
	}
	at := m.ImageAddr(f.addr)
	stored, waits := r.owesAt(f, ofObject(m, page.RangeOf(at, page.Size)), at)
	switch {
	case waits:
		return true
	case !stored, s.registered.Contains(f.addr): // that was emptied: what grows is nowhere in the books
		return false
	}
	return !s.parted(m, f.addr) && r.loseGrown(f, at)
}

// owesAt reports whether the page of f may be the one at the image address at, which is away, or missing elsewhere, if it lies
// within the object. f waits where the index has to come first.
func (r *reader) owesAt(f fault, object page.Range, at page.Addr) (stored, waits bool) {
	seg := r.SegmentAt(at)
	if seg < 0 || !object.Contains(at) || r.world.removed.Contains(at) {
		return false, false
	}
	away := r.world.inherited || f.s.away.Contains(at)
	if !away && !f.s.holds(page.RangeOf(at, page.Size)) {
		return false, false
	}
	sg := r.openNow(seg)
	if sg == nil {
		r.demand.add(r.ctx, flightKey{index: true, frame: seg}, f)
		return false, true
	}
	if sg.lost() {
		return true, false
	}
	run, ok := r.Lookup(at)
	if !ok || run.Kind != image.Stored {
		return false, false
	}
	n := r.number(run, at)
	return away || !f.s.done.get(n) || f.s.isLost(n), false // else it is in its object, where no fault comes from
}

// stretchAt looks what is at the address of f in the process; nil: that is not known. While
// a change is still to be told, or there is no descriptor to look by, f is to wait, as v says. A thread's id
// may be that of another pid namespace, and so another's here, or of who reads or writes the memory of
// another process: by it only what shows one of the objects is believed, and only of a thread that is not in such a call.
func (r *reader) stretchAt(f fault) (st *stretch, v verdict) {
	pid := f.s.pid
	if pid == 0 {
		pid = int(f.tid)
	}
	if pid == 0 {
		return nil, settled
	}
	for i := range r.stretches {
		if st := &r.stretches[i]; st.s == f.s && st.Contains(f.addr) {
			return st, settled
		}
	}
	vmas, err := proc.ReadMapsIn(pid, page.RangeOf(f.addr, page.Size))
	switch {
	case noRoom(err):
		return nil, starved
	case err != nil, hasEnded(f.s.u): // its pid may be another's by now
		return nil, settled
	case isChanging(f.s.u):
		return nil, retry
	}
	if len(vmas) == 0 {
		return nil, settled
	}
	here := &vmas[0]
	found := stretch{s: f.s, Range: here.Range, shared: here.Shared}
	for _, o := range f.s.objects {
		if isOf(here, o) {
			found.object, found.image = o, o.Start+page.Addr(here.Offset)
		}
	}
	if f.s.pid == 0 && (found.object.Empty() || touchesOthers(pid)) {
		return nil, settled
	}
	if len(r.stretches) == maxStretches {
		r.stretches = r.stretches[:0]
	}
	r.stretches = append(r.stretches, found)
	return &r.stretches[len(r.stretches)-1], settled
}

// touchesOthers reports whether the thread tid is in a call that reads or writes memory of other processes, or may be.
func touchesOthers(tid int) bool {
	line, err := readLine("/proc/" + strconv.Itoa(tid) + "/syscall")
	c, asleep := parseCall(line)
	return err != nil || !asleep || c.nr == unix.SYS_PROCESS_VM_READV || c.nr == unix.SYS_PROCESS_VM_WRITEV
}

// parted reports whether between below, the nearest below a of the layout, and a there is memory that the layout has no place for, so
// that it ends before that: that is private, unless it is shared memory that was emptied, or has moved away.
func (m *model) parted(below page.Mapping, a page.Addr) bool {
	var private page.Set
	for r := range m.registered.Within(page.Range{Start: below.End, End: a}) {
		if !overlaps(&m.leaving, r) {
			private.Add(r)
		}
	}
	for r := range m.emptied.Within(page.Range{Start: below.End, End: a}) {
		private.Remove(r)
	}
	return !private.Empty()
}

// extend has the layout know what st shows up to the page of f, and as far above it as all is stored: a fault there says that
// its object does not end below, and to find that out for each page would take longer than all else. What had no
// place any more, as no mapping showed it, is missing again.
func (r *reader) extend(f fault, st *stretch) {
	s := f.s
	r.gate.shut()
	defer r.gate.open()
	unknown := r.unknownAround(f, st)
	at := st.image + (f.addr - st.Start)
	more := page.SetOf(page.Range{Start: at - (f.addr - unknown.Start), End: r.storedUpTo(at, uint64(unknown.End-f.addr))})
	for gone := range r.world.removed.All() {
		more.Remove(gone)
	}
	for at := range more.All() {
		place := at.Shift(st.Start - st.image)
		s.join(page.Mapping{Range: place, Image: at.Start, PageSize: page.Size, Shared: true, Object: st.object})
		s.registered.Add(place)
		s.away.Remove(at)
		r.segments(at, func(i int, sg *segment) {
			switch {
			case sg == nil:
			case sg.lost():
				s.owed.add(i)
			default:
				s.miss(sg.numbers(at))
				r.loseIn(s, sg)
			}
		})
	}
	s.sharedNext, s.sharedHere = 0, false
	if err := r.journal.compact(r.world); err != nil { // no event says it to a successor
		r.log.Warn("the state cannot be written anew", "error", err)
	}
	r.log.Debug("shared memory has grown", "space", s.id, "to", f.addr.String())
	r.kicks.Add(1)
	r.wakeBackground()
}

// unknownAround is how much around the page of f, in st, the books do not know of; at least that page. What
// they know of may have been emptied.
func (r *reader) unknownAround(f fault, st *stretch) page.Range {
	free := f.s.gap(f.addr, st.Range)
	for known := range f.s.registered.Within(page.Range{Start: free.Start, End: f.addr}) {
		free.Start = known.End
	}
	for known := range f.s.registered.Within(page.Range{Start: f.addr + page.Size, End: free.End}) {
		free.End = min(free.End, known.Start)
	}
	return free
}

// storedUpTo is where of the n bytes from the image address at on, a page that is known to be shown,
// what is stored without a gap ends: between two objects there is one.
func (r *reader) storedUpTo(at page.Addr, n uint64) page.Addr {
	end := at + page.Size
	seg := r.SegmentAt(at)
	if r.opened[seg].Load().lost() {
		return end
	}
	within := page.RangeOf(at, n).Intersect(r.SegmentRange(seg))
	for run := range r.RunsIn(within) {
		if run.Kind != image.Stored || run.Page > end {
			break
		}
		end = max(end, run.Range().End)
	}
	return min(end, within.End)
}

// miss notes that the pages numbered from i up to j, of shared memory, are missing, but for those that are lost. The gate is shut.
func (s *space) miss(i, j int) {
	for i = s.done.nextSet(i, j); i < j; i = s.done.nextSet(i+1, j) {
		if !s.lost.get(i) {
			s.done.clear(i)
			s.left.Add(1)
		}
	}
}

// loseGrown poisons the page of f, of which it is not known whether it is the one at the image address at.
func (r *reader) loseGrown(f fault, at page.Addr) bool {
	v, did := r.poisonAt(f)
	if did {
		err := fmt.Errorf("page at %v may be of shared memory that has grown, at image address %v", f.addr, at)
		r.log.Error("page is lost and poisoned: touching it raises SIGBUS", "error", err)
		r.lost.add(err)
		f.s.hasLost.Store(true)
	}
	r.finish(f, v)
	return true
}

// removeGrown has all forget what was removed of shared memory by way of a mapping that has grown to there, of which the layout does
// not know: it is zero wherever it is shown. The kernel tells of the removal before it does it, and of what changes the mapping, so that
// it is seen what that shows.
func (r *reader) removeGrown(s *space, from page.Range) {
	if !s.shared || s.pid == 0 || !s.apart && !s.mayLoseShared() {
		return
	}
	unknown := page.SetOf(from)
	for i := s.search(from.Start); i < len(s.byProc) && s.byProc[i].Start < from.End; i++ {
		unknown.Remove(s.byProc[i].Range)
	}
	if unknown.Empty() {
		return
	}
	vmas, err := proc.ReadMapsIn(s.pid, from)
	if err != nil || hasEnded(s.u) {
		r.world.noteRemoved(s.model, from) // as of a forked child
		return
	}
	var shown page.Set
	for i := range vmas {
		for _, o := range s.objects {
			for part := range unknown.Within(vmas[i].Range) {
				if isOf(&vmas[i], o) {
					shown.Add(part.Shift(o.Start + page.Addr(vmas[i].Offset) - vmas[i].Start).Intersect(o.Range))
				}
			}
		}
	}
	if shown.Empty() {
		return
	}
	for at := range shown.All() {
		r.world.removeShared(at)
	}
	if err := r.journal.compact(r.world); err != nil { // no event says it to a successor
		r.log.Warn("the state cannot be written anew", "error", err)
	}
}
