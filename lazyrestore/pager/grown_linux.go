package pager

import (
	"fmt"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// A mapping of shared memory that grows (mremap) shows more of its object. Nothing tells of that, and the layout has no
// place for it, but what is missing there is no zero: zeros would be the object's, for all who map it, and
// what the image has for them would never come. So where a fault comes from above shared memory that would go on there in the
// image, it is looked in /proc/PID/maps whether it does, and the layout has it from then on. Where that cannot be seen,
// as of a forked child, whose pid is not known, the page is poisoned.

// A stretch is a mapping of a process, and whether it goes on with the shared memory below it in the layout.
type stretch struct {
	s *space
	page.Range
	image page.Addr // of its first page, if so
	grown bool
}

// sharedBelow is the mapping of shared memory that is nearest below a, an address in no mapping.
func (l *layout) sharedBelow(a page.Addr) (page.Mapping, bool) {
	i := l.search(a)
	if i == 0 || !l.byProc[i-1].Shared || l.byProc[i-1].PageSize != page.Size {
		return page.Mapping{}, false
	}
	return l.byProc[i-1], true
}

// grown serves a fault from an address in no mapping if shared memory has grown to there, and
// the image stores the page. If not, ok is false: it is zero.
func (r *reader) grown(f fault) (ok bool) {
	s := f.s
	m, ok := s.sharedBelow(f.addr)
	if !ok {
		return false
	}
	at := m.ImageAddr(f.addr)
	if ofObject(m, page.RangeOf(at, page.Size)).Empty() {
		return false // its object has grown too, if it is that: the image has another one there
	}
	seg := r.SegmentAt(at)
	if seg < 0 || r.world.removed.Contains(at) {
		return false
	}
	sg := r.openNow(seg)
	if sg == nil {
		r.demand.add(r.ctx, flightKey{index: true, frame: seg}, f)
		return true
	}
	if !sg.lost() {
		if run, ok := r.Lookup(at); !ok || run.Kind != image.Stored {
			return false
		}
	}
	if r.stretch.s != s || !r.stretch.Contains(f.addr) {
		known, v := r.findStretch(f, m)
		switch {
		case v != settled:
			r.finish(f, v)
			return true
		case !known && s.registered.Contains(f.addr):
			return false // it was emptied: what grows is nowhere in the books
		case !known && s.parted(m, f.addr):
			return false
		case !known:
			return r.loseGrown(f, at)
		}
	}
	switch {
	case !r.stretch.grown || r.stretch.image+(f.addr-r.stretch.Start) != at:
		return false
	case r.world.inherited && s.registered.Contains(f.addr):
		return false // it was emptied, perhaps by what is known no more: what grows is nowhere in the books
	case r.world.inherited:
		return r.loseGrown(f, at) // it may have been removed before
	}
	r.extend(f, m)
	r.place(f)
	return true
}

// findStretch looks what is at the address of f in the process, where m lies below. It is not known of a forked child. While
// a change is still to be told, or there is no descriptor to look by, f is to wait, as v says.
func (r *reader) findStretch(f fault, m page.Mapping) (known bool, v verdict) {
	if f.s.pid == 0 {
		return false, settled
	}
	vmas, err := proc.ReadMaps(f.s.pid)
	switch {
	case noRoom(err):
		return false, starved
	case err != nil, hasEnded(f.s.u): // its pid may be another's by now
		return false, settled
	case isChanging(f.s.u):
		return false, retry
	}
	var here, below *proc.VMA
	for i := range vmas {
		if vmas[i].Contains(f.addr) {
			here = &vmas[i]
		}
		if vmas[i].Contains(m.End - page.Size) {
			below = &vmas[i]
		}
	}
	if here == nil || below == nil {
		return false, settled
	}
	r.stretch = stretch{s: f.s, Range: here.Range, image: m.Image + (here.Start - m.Start)}
	r.stretch.grown = here.Shared && below.Shared && here.Inode != 0 && here.Inode == below.Inode &&
		here.DevMajor == below.DevMajor && here.DevMinor == below.DevMinor &&
		here.Offset-below.Offset == uint64(here.Start-below.Start)
	return true, settled
}

// parted reports whether between below, the nearest below a of the layout, and a there is memory that the layout has no place for, so
// that it ends before that: that is private, unless shared memory was emptied. What begins where it ends may be its own.
func (m *model) parted(below page.Mapping, a page.Addr) bool {
	if m.emptied {
		return false
	}
	for r := range m.registered.Within(page.Range{Start: below.End, End: a}) {
		if r.Start > below.End && !overlaps(&m.leaving, r) {
			return true
		}
	}
	return false
}

// extend has the layout know that m goes on up to the page of f, and as far above it as all is stored: a fault there says that
// its object does not end below, and to find that out for each page would take longer than all else. What had no
// place any more, as no mapping showed it, is missing again.
func (r *reader) extend(f fault, m page.Mapping) {
	s := f.s
	r.gate.shut()
	defer r.gate.open()
	from := max(m.End, r.stretch.Start)
	more := page.SetOf(page.Range{Start: m.ImageAddr(from), End: r.storedUpTo(m.ImageAddr(f.addr), r.unknownFrom(f))})
	for gone := range r.world.removed.All() {
		more.Remove(gone)
	}
	for at := range more.All() {
		place := at.Shift(m.Start - m.Image)
		s.join(page.Mapping{Range: place, Image: at.Start, PageSize: page.Size, Shared: true, Object: m.Object})
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

// unknownFrom is how much from the page of f on, in the stretch, the books do not know of; at least that page. What
// they know of may have been emptied.
func (r *reader) unknownFrom(f fault) uint64 {
	free := f.s.gap(f.addr, page.Range{Start: f.addr, End: r.stretch.End})
	for known := range f.s.registered.Within(page.Range{Start: f.addr + page.Size, End: free.End}) {
		free.End = min(free.End, known.Start)
	}
	return free.Len()
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
