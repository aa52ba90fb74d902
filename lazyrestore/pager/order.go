package pager

import (
	"sync"
	"sync/atomic"
)

// An order decides which frames the background fetches next: those near the
// latest faults, and where faults come one stride apart those further along
// it, then all the rest from the first to the last. No frame is handed out
// twice unless it is given back.
//
// The reader calls touch and claim and never waits for anyone; workers call
// next.
type order struct {
	claimed bitset // frames that somebody fetches or has fetched

	touched [touchSlots]atomic.Int64 // ring of frames touched, plus one
	written atomic.Uint64            // touches so far

	mu      sync.Mutex
	read    uint64    // guarded by mu: touches seen
	cursor  int       // guarded by mu: where the sweep is
	streams [8]stream // guarded by mu: the latest lines of faults
	turn    int       // guarded by mu: the stream to serve first
	oldest  int       // guarded by mu: the stream that the next new line replaces
}

const (
	touchSlots = 64
	nearFrames = 32 // faults this far apart may belong to one line
	minAhead   = 2
	maxAhead   = 64
)

// A stream is a line of faults: where it is, the stride that it is thought to
// have, and the frames ahead on it that are worth fetching.
type stream struct {
	last, stride int
	depth        int // how many frames to fetch ahead; grows while the line holds
	next, left   int
	used         bool
}

func newOrder(frames int) *order { return &order{claimed: newBitset(frames)} }

// claim takes frame for the caller and reports whether it was free.
func (o *order) claim(frame int) bool { return o.claimed.set(frame) }

// giveBack makes frame free again.
func (o *order) giveBack(frame int) { o.claimed.clear(frame) }

// touch notes a fault in frame. Only one goroutine may call it.
func (o *order) touch(frame int) {
	w := o.written.Load()
	o.touched[w%touchSlots].Store(int64(frame))
	o.written.Store(w + 1)
}

// next claims up to limit frames that lie side by side. n is 0 when no
// frame is free.
func (o *order) next(limit int) (first, n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.digest()
	for i := range o.streams {
		k := (o.turn + i) % len(o.streams)
		if first, n := o.ahead(&o.streams[k], limit); n > 0 {
			o.turn = (k + 1) % len(o.streams) // lines take turns
			return first, n
		}
	}
	return o.sweep(limit)
}

// ahead claims frames that s will come to. Called with mu held.
func (o *order) ahead(s *stream, limit int) (first, n int) {
	for s.left > 0 && n < limit {
		f := s.next
		if f < 0 || f >= o.claimed.n {
			s.left = 0
			break
		}
		if n > 0 && s.stride != 1 && s.stride != -1 {
			break // the next one does not lie beside it
		}
		if !o.claim(f) {
			if n > 0 {
				break
			}
		} else {
			if n == 0 || s.stride < 0 {
				first = f
			}
			n++
		}
		s.next += s.stride
		s.left--
	}
	return first, n
}

// sweep claims the next free frames from the cursor on, and begins again at
// the start once it has come to the end. Called with mu held.
func (o *order) sweep(limit int) (first, n int) {
	for range 2 {
		for o.cursor < o.claimed.n {
			first = o.claimed.nextClear(o.cursor, o.claimed.n)
			o.cursor = first
			for n < limit && first+n < o.claimed.n && o.claim(first+n) {
				n++
			}
			if n > 0 {
				o.cursor = first + n
				return first, n
			}
		}
		o.cursor = 0
	}
	return 0, 0
}

// digest turns new touches into windows. Called with mu held.
func (o *order) digest() {
	w := o.written.Load()
	if w-o.read > touchSlots {
		o.read = w - touchSlots
	}
	for ; o.read < w; o.read++ {
		o.follow(int(o.touched[o.read%touchSlots].Load()))
	}
}

// follow adds frame to the line that it continues, or begins a new one.
// Called with mu held.
func (o *order) follow(frame int) {
	near := -1
	for i := range o.streams {
		s := &o.streams[i]
		step := frame - s.last
		switch {
		case !s.used:
		case step == 0:
			return
		case o.continues(s, frame):
			s.depth = min(2*s.depth, maxAhead)
			o.aim(i, frame)
			return
		case -nearFrames <= step && step <= nearFrames:
			near = i
		}
	}
	if near >= 0 {
		s := &o.streams[near]
		s.stride, s.depth = frame-s.last, minAhead
		o.aim(near, frame)
		return
	}
	o.streams[o.oldest] = stream{stride: 1, depth: minAhead, used: true}
	o.aim(o.oldest, frame)
	o.oldest = (o.oldest + 1) % len(o.streams)
}

// continues reports whether frame is the next on s's line of which nobody has
// taken care.
func (o *order) continues(s *stream, frame int) bool {
	steps := (frame - s.last) / s.stride
	if s.last+steps*s.stride != frame || steps < 1 || steps > nearFrames {
		return false
	}
	for f := s.last + s.stride; f != frame; f += s.stride {
		if !o.claimed.get(f) {
			return false
		}
	}
	return true
}

// aim sets stream i to run ahead of frame.
func (o *order) aim(i, frame int) {
	s := &o.streams[i]
	s.last, s.next, s.left = frame, frame+s.stride, s.depth
	o.turn = i
}
