package pager

import (
	"slices"
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
	left  atomic.Int64 // bits of done that are clear, in opened segments of the index
	order *order       // in which the background fetches
	ended atomic.Bool  // the process is gone: nothing more can be installed
	// crowded: an event stays unread for want of descriptors, and nothing can be
	// installed before it has been read.
	crowded atomic.Bool
	guards  guards
	bring   bringing

	// lost has a bit for each stored page of shared memory that nobody shall
	// see. Being poisoned is no property of the page, but of the place where it
	// was poisoned: after MADV_DONTNEED, and in a child forked afterwards, it is
	// missing. So the space stays registered as long as its process lives.
	lost    bitset // empty where no memory is shared
	hasLost atomic.Bool
	owed    owed

	objects []page.Object // of shared memory of common pages, as it was at first

	// Of the reader.
	ramp       ramp
	earlyFirst [2]page.Range     // see firstUnsettled
	earlySince int64             // since when it is that; 0: all is settled
	hidden     bool              // what calls its threads are in may not be read
	sharedNext int               // no page of shared memory with a lower number is missing
	sharedHere bool              // none is
	away       page.Set          // image addresses of shared memory that was missing when the last mapping that showed it went
	stays      bool              // it misses nothing but what is away
	woken      map[page.Addr]int // how often a fault on a page that is there was answered by waking alone
}

// newSpace begins to serve m, that of a child which parent has forked, or of
// nobody's child: nil.
func newSpace(t *table, m *model, u *uffd.FD, mem memory, parent *space) *space {
	s := &space{model: m, u: u, mem: orderly{mem, m}, order: newOrder(t.Frames())}
	if parent != nil {
		s.done, s.lost, s.away = parent.done.clone(), parent.lost.clone(), parent.away.Clone()
		s.objects = parent.objects
		s.hasLost.Store(parent.hasLost.Load())
	} else {
		if m.sharesAny() {
			s.lost = newBitset(t.room())
		}
		s.done = newBitset(t.room())
		for _, p := range m.byProc {
			if p.Shared && p.PageSize == page.Size && !p.Object.Empty() && !slices.Contains(s.objects, p.Object) {
				s.objects = append(s.objects, p.Object)
			}
		}
	}
	for i := range t.opened {
		sg := t.opened[i].Load()
		switch {
		case sg == nil:
		case parent == nil:
			s.enter(t, i, sg)
		default:
			first, end := t.SegmentFrames(i)
			s.left.Add(int64(s.done.clears(first*t.each, end*t.each)))
			if sg.lost() && parent.owed.n.Load() > 0 {
				s.owed.add(i)
			}
		}
	}
	return s
}

// enter begins to keep books on the pages of segment i: those that no mapping
// holds, and numbers that stand for none, are settled. If it is lost, what s has of it
// is to be poisoned.
func (s *space) enter(t *table, i int, sg *segment) {
	first, end := t.SegmentFrames(i)
	from, to := first*t.each, end*t.each
	if !sg.lost() {
		s.places(sg.within, func(m page.Mapping) {
			a, b := sg.numbers(m.ImageRange())
			if a > from {
				s.done.setRange(from, a)
			}
			from = max(from, b)
		})
	}
	if sg.lost() && s.holds(sg.within) {
		s.owed.add(i)
	}
	if from < to {
		s.done.setRange(from, to)
	}
	s.left.Add(int64(s.done.clears(first*t.each, to)))
}

// complete reports whether the space misses nothing, nor is to be poisoned, and nothing that
// it has lost can be missing again. The caller is the reader.
func (s *space) complete(t *table) bool {
	if s.left.Load() > 0 || s.owed.n.Load() > 0 || s.hasLost.Load() {
		return false
	}
	for i := range t.opened {
		if t.opened[i].Load() == nil && s.holds(t.SegmentRange(i)) {
			return false
		}
	}
	return true
}

// holds reports whether any of the image range r has a place.
func (s *space) holds(r page.Range) (some bool) {
	s.places(r, func(page.Mapping) { some = true })
	return some
}

// missingBytes is how much is missing, or, of what the index has not told yet,
// may be. The caller is the reader, or inside the gate.
func (s *space) missingBytes(t *table) uint64 {
	n := uint64(s.left.Load()) << page.Shift
	for i := range t.opened {
		if t.opened[i].Load() != nil {
			continue
		}
		mapped := uint64(0)
		s.places(t.SegmentRange(i), func(m page.Mapping) { mapped += m.Len() })
		first, end := t.SegmentFrames(i)
		n += min(mapped, uint64(end-first)*uint64(t.ChunkSize()))
	}
	return n
}

// missesShared reports whether shared memory is missing, or what cannot be told yet may be. What is there
// once stays so for whoever asks this: if it is removed it is no longer in the layout. The caller is the reader.
func (s *space) missesShared(t *table) bool {
	if s.sharedHere {
		return false
	}
	all, missing := page.Range{Start: page.ImageShared, End: ^page.Addr(page.Size - 1)}, false
	t.segments(all, func(_ int, sg *segment) {
		switch {
		case missing:
		case sg == nil, sg.lost():
			missing = true
		default:
			i, j := sg.numbers(all)
			s.sharedNext = s.done.nextClear(max(i, s.sharedNext), j)
			missing = s.sharedNext < j
		}
	})
	s.sharedHere = !missing
	return missing
}

// owesShared reports whether any of the shared memory in the process range r is missing or lost, or may be for all that the index
// has told. The caller is the reader.
func (s *space) owesShared(t *table, r page.Range) (owes bool) {
	for i := s.search(r.Start); i < len(s.byProc) && s.byProc[i].Start < r.End; i++ {
		m := cutProc(s.byProc[i], r)
		if !m.Shared {
			continue
		}
		t.segments(m.ImageRange(), func(k int, sg *segment) {
			switch {
			case sg == nil:
				s.missingUnopened(t, k, m, func(page.Mapping) { owes = true })
			case sg.lost():
				owes = true
			default:
				i, j := sg.numbers(m.ImageRange())
				owes = owes || s.nextOwed(i, j) < j
			}
		})
	}
	return owes
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

// loseRange notes that what is missing of the image range r, which segment sg
// lists, of shared memory, is lost.
func (s *space) loseRange(sg *segment, r page.Range) {
	i, j := sg.numbers(r)
	for i = s.done.nextClear(i, j); i < j; i = s.done.nextClear(i, j) {
		s.lose(i, s.done.nextSet(i, j))
	}
}

// settleRange notes that what is stored of the image range r needs no more.
func (s *space) settleRange(t *table, r page.Range) {
	t.segments(r, func(_ int, sg *segment) {
		if sg != nil && !sg.lost() {
			s.settle(sg.numbers(r))
		}
	})
}

// count is how many pages are stored of the image range r, whose segments are
// opened, and how many of them are missing.
func (s *space) count(t *table, r page.Range) (stored, missing int) {
	t.segments(r, func(_ int, sg *segment) {
		if !sg.lost() {
			i, j := sg.numbers(r)
			stored += j - i
			missing += s.done.clears(i, j)
		}
	})
	return stored, missing
}

// lostIn reports whether some of the image range r, whose segments are opened, is lost.
func (s *space) lostIn(t *table, r page.Range) (some bool) {
	if !s.hasLost.Load() {
		return false
	}
	t.segments(r, func(_ int, sg *segment) {
		if !sg.lost() {
			i, j := sg.numbers(r)
			some = some || s.lost.nextSet(i, j) < j
		}
	})
	return some
}

// settleGone does so for what the latest events have cut out of the layout. Of shared memory that was missing it is
// noted, but for what is removed: a mapping that grows shows it again.
func (s *space) settleGone(t *table, removed *page.Set) {
	for _, r := range s.gone {
		rest := page.SetOf(r)
		s.places(r, func(m page.Mapping) { rest.Remove(m.ImageRange()) })
		for r := range rest.All() {
			s.noteAway(t, r)
			s.settleRange(t, r)
		}
	}
	s.gone = s.gone[:0]
	if s.away.Empty() {
		return
	}
	for r := range removed.All() {
		s.away.Remove(r)
	}
}

// missing calls f with each part of the layout whose pages are still missing, or
// lost where no page table need tell of that: in shared memory, and in what is to be poisoned yet.
func (s *space) missing(t *table, f func(page.Mapping)) {
	var runs []image.Run
	for _, m := range s.byProc {
		t.segments(m.ImageRange(), func(k int, sg *segment) {
			switch {
			case sg == nil:
				s.missingUnopened(t, k, m, f)
			case !sg.lost():
				i, end := sg.numbers(m.ImageRange())
				for i = s.nextOwed(i, end); i < end; i = s.nextOwed(i, end) {
					j := s.nextNotOwed(i, end)
					t.addresses(&runs, i, j, func(r page.Range, _ int) { f(cutImage(m, r)) })
					i = j
				}
			case m.Shared, s.owed.n.Load() > 0:
				f(cutImage(m, m.ImageRange().Intersect(t.SegmentRange(k))))
			}
		})
	}
}

// nextOwed is the first page number from i on and before end that is missing or
// lost, or end; nextNotOwed the first that is neither.
func (s *space) nextOwed(i, end int) int {
	next := s.done.nextClear(i, end)
	if s.hasLost.Load() {
		next = min(next, s.lost.nextSet(i, end))
	}
	return next
}

func (s *space) nextNotOwed(i, end int) int {
	for i < end {
		next := s.done.nextSet(i, end)
		if s.hasLost.Load() && next < end && s.lost.get(next) {
			next = s.lost.nextClear(next, end)
		}
		if next == i {
			break
		}
		i = next
	}
	return i
}

// missingUnopened is missing for the part of m that segment k, from which
// nothing has been served yet, lists. All that is stored there is missing; as
// long as the segment is not loaded, all of it may be.
func (s *space) missingUnopened(t *table, k int, m page.Mapping, f func(page.Mapping)) {
	part := m.ImageRange().Intersect(t.SegmentRange(k))
	if !t.Loaded(k) {
		f(cutImage(m, part))
		return
	}
	for r := range t.RunsIn(part) {
		if r.Kind == image.Stored {
			f(cutImage(m, r.Range()))
		}
	}
}
