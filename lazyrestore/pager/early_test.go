package pager

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd"
)

// A block is memory of a thread: some places side by side, of which the latter may be
// what it has grown by since it came. The last of them may be memory that is not served.
type block struct{ place, n, plain, grown int }

func (b block) Range() page.Range {
	return page.Range{Start: moverPlace(b.place).Start, End: moverPlace(b.place + b.n - 1).End}
}

func (b block) served() block { return block{place: b.place, n: b.n - b.plain} }

// growth is where b has grown to.
func (b block) growth() page.Range {
	if b.grown == 0 {
		return page.Range{}
	}
	return block{place: b.place + b.n - b.grown, n: b.grown}.Range()
}

// A mover is a thread that moves, grows and unmaps blocks of its own, to places of the
// kernel's choice, and gives some away when it is in no call.
type mover struct {
	blocks []block
	told   []event // what is still to be told of its latest call
	shown  []leave // what /proc shows of that
	queued bool    // the next of it can be read; else the thread is on its way
}

// movers are some, and what the kernel knows. What is told of a call its thread
// waits for, in order; among threads the order is any.
type movers struct {
	threads []mover
	queue   []int     // of threads
	free    page.Set  // places
	truth   reference // what is where
	looks   bool      // each move is looked at in time
}

const moverPlaces = 12

func moverPlace(n int) page.Range {
	const size = 3 * page.Size
	return page.RangeOf(testBase+page.Addr(n)*size, size)
}

// drawMovers are some, and the layout in which they begin.
func drawMovers(t *rapid.T) (*movers, layout) {
	s := &movers{truth: reference{}, threads: make([]mover, 4)}
	var maps []page.Mapping
	for place := range moverPlaces {
		owner := rapid.IntRange(-2, len(s.threads)-1).Draw(t, "owner")
		if owner < 0 {
			s.free.Add(moverPlace(place))
			continue
		}
		s.threads[owner].blocks = append(s.threads[owner].blocks, block{place: place, n: 1})
		r := moverPlace(place)
		m := page.Mapping{Range: r, Image: r.Start, PageSize: page.Size}
		if m.Shared = rapid.Bool().Draw(t, "shared"); m.Shared {
			m.Image += page.ImageShared
		}
		maps = append(maps, m)
		for a := r.Start; a < r.End; a += page.Size {
			s.truth[a] = m.ImageAddr(a)
		}
	}
	l, err := newLayout(maps)
	if err != nil {
		t.Fatal(err)
	}
	return s, l
}

// room is where n places side by side are free.
func (s *movers) room(n int) (list []int) {
	for place := range moverPlaces - n + 1 {
		if s.free.Covers(block{place: place, n: n}.Range()) {
			list = append(list, place)
		}
	}
	return list
}

const (
	callUnmap = iota
	callShrink
	callGrow
	callPlain
	callGive
	callMoveAndGrow
	callMove
	calls = callMove + 4
)

// may reports whether a thread may do call with b. It does not move on from a place
// that it has just grown to, where another has unmapped what was there and that is not told.
func (s *movers) may(call int, b block) bool {
	switch call {
	case callUnmap, callGive:
		return true
	case callShrink:
		return b.n == 2 && b.plain == 0
	case callGrow, callPlain:
		return b.n < 3 && b.plain == 0 && b.place+b.n < moverPlaces && s.free.Covers(moverPlace(b.place+b.n))
	case callMoveAndGrow:
		return b.n == 1 && b.plain == 0 && len(s.room(2)) > 0
	default:
		return b.n > b.plain && len(s.room(b.n-b.plain)) > 0 && !slices.ContainsFunc(s.threads, func(th mover) bool {
			return len(th.told) == 1 && !th.shown[0].moves && th.shown[0].Overlaps(b.growth())
		})
	}
}

// call has a thread do something with a block of its own.
func (s *movers) call(t *rapid.T, thread int) {
	call := min(rapid.IntRange(0, calls).Draw(t, "call"), callMove)
	th := &s.threads[thread]
	var list []int
	for i, b := range th.blocks {
		if s.may(call, b) {
			list = append(list, i)
		}
	}
	if len(list) == 0 {
		return
	}
	i := rapid.SampledFrom(list).Draw(t, "block")
	b := th.blocks[i]
	switch call {
	case callGrow, callPlain: // nothing is told
		th.blocks[i].n++
		th.blocks[i].grown++
		th.blocks[i].plain = call - callGrow
		s.free.Remove(moverPlace(b.place + b.n))
		t.Logf("thread %d: %v grows, plain %v", thread, b.Range(), call == callPlain)
		return
	case callGive:
		to := &s.threads[rapid.IntRange(0, len(s.threads)-1).Draw(t, "to")]
		th.blocks = slices.Delete(th.blocks, i, i+1)
		to.blocks = append(to.blocks, b)
		return
	case callUnmap:
		th.blocks = slices.Delete(th.blocks, i, i+1)
		if b.n == b.plain { // that is not told
			s.free.Add(b.Range())
			return
		}
		s.leave(th, b.Range(), leave{Range: b.Range()}, event{kind: eventUnmap, from: b.Range()})
	case callShrink:
		th.blocks[i].n--
		th.blocks[i].grown = 0
		last := moverPlace(b.place + b.n - 1)
		s.leave(th, last, leave{Range: last}, event{kind: eventUnmap, from: last})
	default:
		from := b.served()
		into := block{n: from.n + callMove - call}
		into.place = rapid.SampledFrom(s.room(into.n)).Draw(t, "to")
		th.blocks[i] = into
		s.free.Remove(into.Range())
		if b.plain > 0 {
			th.blocks = append(th.blocks, block{place: b.place + from.n, n: b.plain, plain: b.plain})
		}
		r := from.Range()
		s.leave(th, r, leave{r, true, 0}, event{kind: eventRemap, from: r, to: into.Range().Start}, event{kind: eventUnmap, from: r})
	}
	t.Logf("thread %d: %v", thread, th.told)
}

// leave has a thread leave r.
func (s *movers) leave(th *mover, r page.Range, shown leave, told ...event) {
	s.free.Add(r)
	s.truth.apply(told[0])
	th.told, th.shown, th.queued = told, []leave{shown}, false
}

// enqueue has what is to be told next of all threads be readable, in any order.
func (s *movers) enqueue(t *rapid.T) {
	order := rapid.Permutation([]int{0, 1, 2, 3}).Draw(t, "order")
	for _, thread := range order {
		s.enqueue1(thread)
	}
}

func (s *movers) enqueue1(thread int) {
	if th := &s.threads[thread]; len(th.told) > 0 && !th.queued {
		th.queued = true
		s.queue = append(s.queue, thread)
	}
}

// tell tells w the next that can be read.
func (s *movers) tell(t *rapid.T, w *world) {
	thread := s.queue[0]
	s.queue = s.queue[1:]
	th := &s.threads[thread]
	e := th.told[0]
	th.told, th.queued = th.told[1:], false
	t.Logf("thread %d is told %v", thread, e)
	say := func(e event) {
		if _, err := w.apply(0, e); err != nil {
			t.Fatal(err)
		}
	}
	say(e)
	if m := w.spaces[0]; s.looks && len(m.held) > 0 {
		t.Fatalf("it is held: %v", m.held)
	}
	fresh := len(w.spaces[0].fresh) > 0
	if fresh && s.looks {
		s.enqueue(t)
		for i, th := range s.threads {
			for _, l := range th.shown {
				if len(th.told) > 0 {
					say(event{kind: eventLeave, from: l.Range, moves: l.moves, tid: i + 1})
				}
			}
		}
	}
	if fresh {
		say(event{kind: eventLooked, sure: s.looks})
	}
}

// tellAll tells w all, and then that it was all.
func (s *movers) tellAll(t *rapid.T, w *world) {
	for s.enqueue(t); len(s.queue) > 0; s.enqueue(t) {
		s.tell(t, w)
	}
	t.Log("that was all")
	if m := w.spaces[0]; s.looks && m.unsettled() {
		t.Fatalf("held %v, vacant %v", m.held, m.vacant)
	}
	if _, err := w.apply(0, event{kind: eventForce}); err != nil {
		t.Fatal(err)
	}
}

// check compares what w believes with what is.
func (s *movers) check(t *rapid.T, m *model) {
	s.truth.check(t, &m.layout)
	var mapped page.Set
	for _, th := range s.threads {
		for _, b := range th.blocks {
			mapped.Add(b.Range())
		}
	}
	for a := range s.truth {
		if !m.registered.Contains(a) {
			t.Fatalf("%v is not registered", a)
		}
	}
	for r := range m.registered.All() {
		if !mapped.Covers(r) {
			t.Fatalf("%v is registered, and not there", r)
		}
	}
}

// In whatever order it is told what threads did: in the end the layout is what the
// kernel has.
func TestEventsInAnyOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, l := drawMovers(t)
		s.looks = true
		w := &world{}
		m := w.add(3, 1, l)
		m.moving = true // before its first move nobody looks who is about to tell of one
		for range rapid.IntRange(0, 80).Draw(t, "steps") {
			thread := rapid.IntRange(0, len(s.threads)-1).Draw(t, "thread")
			th := &s.threads[thread]
			switch {
			case len(th.told) == 0:
				s.call(t, thread)
			case rapid.IntRange(0, 9).Draw(t, "all") == 0:
				s.tellAll(t, w)
				s.check(t, m)
			case !th.queued:
				s.enqueue1(thread)
			case len(s.queue) > 0:
				s.tell(t, w)
			}
		}
		s.tellAll(t, w)
		s.check(t, m)
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
		tell(t, w, m, event{kind: eventLooked})
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

// Faults are read many at a time, and no event with what was told after it.
func TestReadsByOne(t *testing.T) {
	for queue, want := range map[string]int{
		"": 0, "\x12": 1, "\x12\x12\x12": 3, "\x14\x16": 1, "\x12\x14\x12\x16": 2, "\x12\x12\x12\x12\x12\x14": 4,
	} {
		rest := queue
		read := byOne(func(slots []uffd.Msg) (int, error) {
			if rest == "" {
				return 0, unix.EAGAIN
			}
			slotOf(&slots[0])[0] = rest[0]
			rest = rest[1:]
			return 1, nil
		})
		slots := make([]uffd.Msg, 4)
		n, err := read(slots)
		if n != want || (err != nil) != (queue == "") {
			t.Errorf("of %q it reads %d, want %d; %v", queue, n, want, err)
		}
		for i := range n {
			if got := slotOf(&slots[i])[0]; got != queue[i] {
				t.Errorf("of %q message %d is %x", queue, i, got)
			}
		}
	}
}

// What shared memory had grown by stays out of the books also where it has waited in limbo.
func TestGrownSharedMemoryInLimbo(t *testing.T) {
	shared := page.Mapping{Range: page.RangeOf(testBase, 8*page.Size), Image: page.ImageShared, PageSize: page.Size, Shared: true}
	other := page.Mapping{Range: page.RangeOf(testBase+1<<30, 4*page.Size), Image: testBase + 1<<30, PageSize: page.Size}
	l, err := newLayout([]page.Mapping{shared, other})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{}
	m := w.add(3, 1, l)
	from, to := page.RangeOf(testBase, 12*page.Size), testBase+page.Addr(2<<30) // by 4 pages
	for _, e := range []event{
		{kind: eventRemap, from: other.Range, to: shared.Start},
		{kind: eventLeave, from: from, moves: true, tid: 1},
		{kind: eventLeave, from: other.Range, moves: true, tid: 2},
		{kind: eventLooked, sure: true},
		{kind: eventRemap, from: from, to: to},
		{kind: eventLeave, from: from, moves: true, tid: 1},
		{kind: eventLeave, from: other.Range, moves: true, tid: 2},
		{kind: eventLooked, sure: true},
	} {
		tell(t, w, m, e)
	}
	if at, ok := m.find(to); !ok || at.Image != shared.Image {
		t.Fatalf("at %v there is %v, %v", to, at, ok)
	}
	if r := page.RangeOf(to+8*page.Size, 4*page.Size); overlaps(&m.registered, r) {
		t.Errorf("%v is in the books", r)
	}
}
