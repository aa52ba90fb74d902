package pager

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// movers are threads that move and unmap blocks of their own, to places of the
// kernel's choice. What is told of a call its thread waits for, in order; among
// threads the order is any.
type movers struct {
	blocks [][]int   // of each thread: the places of its blocks
	told   [][]event // of each thread: what is still to be told of its latest call
	free   []int     // places
	truth  reference // what is where, in the kernel's mind
}

const moverPlaces = 12

func moverPlace(n int) page.Range {
	const size = 3 * page.Size
	return page.RangeOf(testBase+page.Addr(n)*size, size)
}

// drawMovers are some, and the layout in which they begin.
func drawMovers(t *rapid.T) (*movers, layout) {
	s := &movers{truth: reference{}, blocks: make([][]int, 3), told: make([][]event, 3)}
	var maps []page.Mapping
	for place := range moverPlaces {
		owner := rapid.IntRange(-2, len(s.blocks)-1).Draw(t, "owner")
		if owner < 0 {
			s.free = append(s.free, place)
			continue
		}
		s.blocks[owner] = append(s.blocks[owner], place)
		r := moverPlace(place)
		maps = append(maps, page.Mapping{Range: r, Image: r.Start, PageSize: page.Size})
		for a := r.Start; a < r.End; a += page.Size {
			s.truth[a] = a
		}
	}
	l, err := newLayout(maps)
	if err != nil {
		t.Fatal(err)
	}
	return s, l
}

// untold reports whether a thread has left r and that is not told. Of a
// move, that it was unmapped afterwards does not count.
func (s *movers) untold(r page.Range) bool {
	return slices.ContainsFunc(s.told, func(list []event) bool {
		return slices.ContainsFunc(list, func(e event) bool { return e.from == r && (e.kind == eventRemap || len(list) == 1 && e.fd == 0) })
	})
}

// unsaid is untold, with the end of moves.
func (s *movers) unsaid(r page.Range) bool {
	return slices.ContainsFunc(s.told, func(list []event) bool {
		return slices.ContainsFunc(list, func(e event) bool { return e.from == r })
	})
}

// call has a thread move or unmap a block. It is not one that came to its place
// before it was told that another had left: more than two changes of one place
// cannot be told apart.
func (s *movers) call(t *rapid.T, thread int) {
	move := len(s.free) > 0 && rapid.IntRange(0, 3).Draw(t, "call") > 0
	may := slices.DeleteFunc(slices.Clone(s.blocks[thread]), func(place int) bool {
		return s.untold(moverPlace(place)) || !move && s.unsaid(moverPlace(place))
	})
	if len(may) == 0 {
		return
	}
	take := func(list *[]int) int {
		n := rapid.SampledFrom(*list).Draw(t, "place")
		*list = slices.DeleteFunc(slices.Clone(*list), func(p int) bool { return p == n })
		return n
	}
	from := take(&may)
	s.blocks[thread] = slices.DeleteFunc(s.blocks[thread], func(p int) bool { return p == from })
	e := event{kind: eventUnmap, from: moverPlace(from)}
	s.told[thread] = []event{e}
	if move {
		to := take(&s.free)
		s.blocks[thread] = append(s.blocks[thread], to)
		e = event{kind: eventRemap, from: e.from, to: moverPlace(to).Start}
		// fd marks the end of a move, for untold; it means nothing there.
		s.told[thread] = []event{e, {kind: eventUnmap, from: e.from, fd: 1}}
	}
	s.free = append(s.free, from)
	s.truth.apply(e)
	t.Logf("thread %d: %v", thread, s.told[thread])
}

// tell tells w the next of what is to be told of a thread.
func (s *movers) tell(t *rapid.T, w *world, thread int) {
	e := s.told[thread][0]
	s.told[thread] = s.told[thread][1:]
	t.Logf("thread %d is told %v", thread, e)
	if _, err := w.apply(0, e); err != nil {
		t.Fatal(err)
	}
}

// In whatever order it is told what threads did: in the end the layout is what the
// kernel has.
func TestEventsInAnyOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, l := drawMovers(t)
		w := &world{}
		m := w.add(3, 1, l)
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			thread := rapid.IntRange(0, len(s.told)-1).Draw(t, "thread")
			if len(s.told[thread]) == 0 {
				s.call(t, thread)
			} else {
				s.tell(t, w, thread)
			}
		}
		for thread := range s.told {
			for len(s.told[thread]) > 0 {
				s.tell(t, w, thread)
			}
		}
		if len(m.held) > 0 {
			t.Fatalf("still held: %v", m.held)
		}
		s.truth.check(t, &m.layout)
		var want page.Set
		for a := range s.truth {
			want.Add(page.RangeOf(a, page.Size))
		}
		if diff := cmp.Diff(slices.Collect(want.All()), slices.Collect(m.registered.All())); diff != "" {
			t.Fatalf("registered (-want +got):\n%s", diff)
		}
	})
}

// Events that wait for what is never told are taken as they are, and a child
// waits for nothing that only its parent is told.
func TestEarlyEventsAreForced(t *testing.T) {
	start := func() (*world, *model) {
		w := &world{}
		var maps []page.Mapping
		for n := range 2 {
			maps = append(maps, page.Mapping{Range: moverPlace(n), Image: moverPlace(n).Start, PageSize: page.Size})
		}
		l, err := newLayout(maps)
		if err != nil {
			t.Fatal(err)
		}
		m := w.add(3, 1, l)
		tell(t, w, m, event{kind: eventRemap, from: moverPlace(0), to: moverPlace(1).Start})
		tell(t, w, m, event{kind: eventUnmap, from: moverPlace(0)})
		if got, _ := m.find(moverPlace(1).Start); len(m.held) != 2 || got.Image != moverPlace(1).Start {
			t.Fatalf("held: %v; %v is there", m.held, got)
		}
		return w, m
	}
	moved := func(m *model) {
		t.Helper()
		if got, _ := m.find(moverPlace(1).Start); len(m.held) != 0 || got.Image != moverPlace(0).Start || len(m.byProc) != 1 {
			t.Errorf("held: %v; layout %v", m.held, m.byProc)
		}
	}
	w, m := start()
	tell(t, w, m, event{kind: eventForce})
	moved(m)
	w, m = start()
	moved(tell(t, w, m, event{kind: eventFork, fd: 7}))
	if len(m.held) != 2 {
		t.Errorf("the parent holds %v", m.held)
	}
	w, m = start()
	for n := range maxEarly {
		tell(t, w, m, event{kind: eventRemap, from: moverPlace(n + 4), to: moverPlace(1).Start})
	}
	if len(m.held) > maxEarly {
		t.Errorf("%d events are held", len(m.held))
	}
}

func tell(t *testing.T, w *world, m *model, e event) *model {
	t.Helper()
	child, err := w.apply(m.id, e)
	if err != nil {
		t.Fatal(err)
	}
	return child
}

// Faults that are tried again and again take no more room for that.
func TestRetriedFaultsTakeNoRoom(t *testing.T) {
	r := &reader{}
	s := &space{model: &model{held: make([]event, 1)}} // so nothing is served
	r.queue = append(r.queue, fault{s: s}, fault{s: s, addr: page.Size})
	for range 50_000 {
		r.serve()
	}
	if len(r.queue)-r.head != 2 || cap(r.queue) > 1000 {
		t.Errorf("%d faults wait in a queue with room for %d", len(r.queue)-r.head, cap(r.queue))
	}
}
