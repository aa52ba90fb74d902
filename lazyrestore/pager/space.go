package pager

import (
	"sync/atomic"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd"
)

// A space is one address space while it is served: its model, its uffd, and
// what of the image it still misses. The reader alone changes the model, with
// the gate shut; who is inside the gate may read it.
type space struct {
	*model
	u   *uffd.FD
	mem memory

	// done has a bit for each stored page: it is there, or not wanted.
	done  bitset
	left  atomic.Int64 // bits of done that are clear
	order *order       // in which the background fetches
	ended atomic.Bool  // the process is gone: nothing more can be installed

	// lost has a bit for each stored page of shared memory that nobody shall
	// see. Being poisoned is no property of the page, but of the place where it
	// was poisoned: after MADV_DONTNEED, and in a child forked afterwards, it is
	// missing. So the space stays registered as long as its process lives.
	lost    bitset // empty where no memory is shared
	hasLost atomic.Bool

	// Of the reader.
	ramp     ramp
	lastWake page.Addr
	wakes    int
}

// newSpace begins to serve m, that of a child which parent has forked, or of
// nobody's child: nil.
func newSpace(t *table, m *model, u *uffd.FD, mem memory, parent *space) *space {
	s := &space{model: m, u: u, mem: mem, order: newOrder(t.Frames())}
	if parent != nil {
		s.done, s.lost = parent.done.clone(), parent.lost.clone()
		s.hasLost.Store(parent.hasLost.Load())
	} else {
		if m.sharesAny() {
			s.lost = newBitset(t.pages())
		}
		s.done = newBitset(t.pages())
		s.settleUnmapped(t)
	}
	s.left.Store(int64(s.done.n - s.done.count()))
	return s
}

// settleUnmapped marks the pages of the image that no mapping holds.
func (s *space) settleUnmapped(t *table) {
	from := 0
	for _, m := range s.byImage {
		a, b := t.numbers(m.ImageRange())
		if a > from {
			s.done.setRange(from, a)
		}
		from = max(from, b)
	}
	if from < s.done.n {
		s.done.setRange(from, s.done.n)
	}
}

// settle notes that the pages numbered from i up to j need no more.
func (s *space) settle(i, j int) { s.left.Add(int64(-s.done.setRange(i, j))) }

// lose notes that the pages numbered from i up to j, of shared memory, are lost.
func (s *space) lose(i, j int) {
	s.lost.setRange(i, j)
	s.hasLost.Store(true) // before somebody finds that nothing is missing
	s.settle(i, j)
}

// isLost reports whether page number n is lost.
func (s *space) isLost(n int) bool { return s.hasLost.Load() && s.lost.get(n) }

// settleGone does so for what the latest events have cut out of the layout.
func (s *space) settleGone(t *table) {
	for _, r := range s.gone {
		rest := page.SetOf(r)
		s.places(r, func(m page.Mapping) { rest.Remove(m.ImageRange()) })
		for r := range rest.All() {
			s.settle(t.numbers(r))
		}
	}
	s.gone = s.gone[:0]
}

// missing calls f with each part of the layout whose pages are still missing.
func (s *space) missing(t *table, f func(page.Mapping)) {
	var runs []image.Run
	for _, m := range s.byProc {
		i, end := t.numbers(m.ImageRange())
		for i = s.done.nextClear(i, end); i < end; {
			j := s.done.nextSet(i, end)
			t.addresses(&runs, i, j, func(r page.Range, _ int) { f(cutImage(m, r)) })
			i = s.done.nextClear(j, end)
		}
	}
}

// A ramp decides how much is filled with zeros around a fault that no image
// page is for: one page at a random place, more and more for a row of them.
type ramp struct {
	end page.Addr
	len uint64
}

// maxZero bounds one fill with zeros: as much as a chunk.
const maxZero = 64 << 10

// next is how many bytes to fill from a on.
func (r *ramp) next(a page.Addr, pageSize uint64) uint64 {
	if a == r.end && r.len > 0 {
		r.len = max(min(2*r.len, maxZero), pageSize)
	} else {
		r.len = pageSize
	}
	r.end = a + page.Addr(r.len)
	return r.len
}
