package pager

import (
	"slices"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// What the reader does between faults: it installs, a piece at a time, the
// rest of the chunks that it has decoded for a fault, and what the background
// workers offer. A thread that touches pages at random thus waits for the
// decoding of a chunk and the copy of one page, not for that of 64 KiB (lz4, 64
// KiB, two processors: 28 µs a touch against 45).

// A rest is a chunk decoded for a fault. It stays at hand until its place is
// needed, for faults on other pages of the chunk.
type rest struct {
	frames *image.FrameReader // plain is its
	plain  []byte             // nil if it has not been fetched yet
	frame  int                // -1 if nothing is here
	s      *space             // still to be installed there; nil if it has been, or nothing is here
	next   int                // the page number that the install has come to
	again  bool               // another fault was for one of its pages before it was fetched
}

const (
	// restBytes and the two that follow bound what rests may hold.
	restBytes = 1 << 20
	minRests  = 2
	maxRests  = 16
)

// makeRests makes room for some rests.
func (r *reader) makeRests() {
	_, r.dear = r.img.Source().(image.Prompt)
	r.rests = make([]rest, min(max(restBytes/r.ChunkSize(), minRests), maxRests))
	for i := range r.rests {
		r.rests[i] = rest{frames: r.newFrames(), frame: -1}
	}
}

// dropRests frees them, and forgets what is left to install of s, or of every
// space if s is nil.
func (r *reader) dropRests(s *space) {
	for i := range r.rests {
		if s == nil {
			r.rests[i].frames.Close()
		} else if r.rests[i].s == s {
			r.rests[i].s = nil
		}
	}
}

// freeRest is the oldest rest. What it still has to install is left to the
// background, or to the next fault, unless it would have to come over a network again.
func (r *reader) freeRest() *rest {
	r.latest = (r.latest + 1) % len(r.rests)
	e := &r.rests[r.latest]
	if e.s != nil && !(r.dear && r.finishRest(e)) {
		e.s.order.giveBack(e.frame)
	}
	e.s, e.frame, e.plain, e.again = nil, -1, nil, false
	return e
}

// finishRest installs what is left of e, and reports whether that could be done now.
func (r *reader) finishRest(e *rest) bool {
	if e.plain == nil || e.s.ended.Load() {
		return false
	}
	base, end := r.frameNumbers(e.frame)
	for e.next < end {
		to := min(end, e.next+oneCopy>>page.Shift)
		switch out, err := r.install(e.s, e.plain, base, e.next, to); out {
		case there:
		case again, full:
			return false
		default:
			r.judge(e.s, out, err)
			return false
		}
		e.next = to
	}
	return true
}

// decoded is the plain data of a chunk that is at hand, in a span that begins
// with page number base. e is the rest that it is in, if it is in one; one that
// has not been fetched yet has none.
func (r *reader) decoded(frame int) (plain []byte, base int, e *rest) {
	for i := range r.rests {
		if e := &r.rests[i]; e.frame == frame {
			return e.plain, r.from(frame), e
		}
	}
	for _, o := range r.held {
		if o.first <= frame && frame < o.first+o.n {
			return o.plain, r.from(o.first), nil
		}
	}
	return nil, 0, nil
}

// unpark queues the parked faults whose frame has come, or has not in time,
// and reports whether any has.
func (r *reader) unpark(now int64) bool {
	limit := parkTime
	if r.streaming.Load() {
		limit = streamParkTime
	}
	r.parked = slices.DeleteFunc(r.parked, func(f fault) bool {
		plain, _, _ := r.decoded(f.frame)
		if plain == nil && now-f.at < limit && r.wanted(f.frame) {
			return false
		}
		f.old = true
		r.queue = append(r.queue, f)
		return true
	})
	return r.head < len(r.queue)
}

// assist installs a piece of a rest or of an offer, in turns, and reports
// whether there was any. It does nothing where the next fault is waited for.
func (r *reader) assist() bool {
	for more := true; more; {
		select {
		case o := <-r.offers:
			r.held = append(r.held, o)
		default:
			more = false
		}
	}
	now := r.now()
	if !r.pace.free(now) && !r.streaming.Load() {
		return false
	}
	first, second := r.assistRest, r.assistOffer
	if r.restTurn = !r.restTurn; !r.restTurn {
		first, second = second, first
	}
	if !first() && !second() {
		return false
	}
	r.pace.worked(now, r.now())
	return true
}

// assistRest installs a piece of the latest rest.
func (r *reader) assistRest() bool {
	for i := range r.rests {
		e := &r.rests[(r.latest+len(r.rests)-i)%len(r.rests)]
		if e.s == nil {
			continue
		}
		base, end := r.frameNumbers(e.frame)
		to := min(end, e.next+r.piece())
		plain, first := e.plain, base
		if plain == nil {
			plain, first = r.ofRest(e, base, to)
		}
		if plain == nil {
			e.s.order.giveBack(e.frame)
			e.s, e.frame = nil, -1
			return true
		}
		if !r.assistInto(e.s, plain, first, e.next, to) {
			return true
		}
		if e.next = to; to == end {
			e.s = nil
		}
		return true
	}
	return false
}

// ofRest reads what e has not been fetched of, for its pages up to number to: no
// more than those where the source gives pages one by one, all of it where not.
// plain begins with page number first; nil: it is not to be had without waiting.
func (r *reader) ofRest(e *rest, base, to int) (plain []byte, first int) {
	plain, ok, err := r.frames.ReadPartNow(e.frame, (e.next-base)<<page.Shift, (to-e.next)<<page.Shift)
	if ok && err == nil {
		r.stats.fetched.Add(uint64(len(plain)))
		return plain, e.next
	}
	if !r.load(e, e.frame) {
		return nil, 0
	}
	return e.plain, base
}

// assistOffer installs a piece of the oldest offer everywhere.
func (r *reader) assistOffer() bool {
	if len(r.held) == 0 {
		return false
	}
	o := r.held[0]
	base, end := r.spanNumbers(o.first, o.n)
	to := min(end, o.next+r.piece())
	for _, s := range *r.spaces.Load() {
		if !r.assistInto(s, o.plain, base, o.next, to) {
			return true
		}
	}
	if o.next = to; to == end {
		r.held = append(r.held[:0], r.held[1:]...)
		o.isDone()
	}
	return true
}

// assistInto installs the pages numbered from i up to j. It reports false if
// an event has to be read first. What memory is short for is left to others, and
// so is what has to wait for a descriptor.
func (r *reader) assistInto(s *space, plain []byte, base, i, j int) bool {
	if s.ended.Load() {
		return true
	}
	out, err := r.install(s, plain, base, i, j)
	switch out {
	case again:
		return s.crowded.Load()
	case there, full:
	default:
		r.judge(s, out, err)
	}
	return true
}
