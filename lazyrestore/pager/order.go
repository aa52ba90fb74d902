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
	streams [8]stream // guarded by mu: recent lines of faults
	turn    int       // guarded by mu: the stream that the next new line replaces
	hot     []window  // guarded by mu: the latest last
}

const (
	touchSlots = 64
	hotLimit   = 32 // windows kept
	nearFrames = 32 // faults this far apart may belong to one line
	minWindow  = 2
	maxWindow  = 64
)

// A stream is a line of faults: the last frame, and the stride that led to it.
type stream struct {
	last, stride, depth int
	used                bool
}

// A window is a row of frames worth fetching soon.
type window struct {
	next, stride, left int
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
	for len(o.hot) > 0 {
		w := &o.hot[len(o.hot)-1]
		for w.left > 0 && w.next >= 0 && w.next < o.claimed.n {
			f := w.next
			w.next += w.stride
			w.left--
			if !o.claim(f) {
				continue
			}
			n = 1
			for w.stride == 1 && n < limit && w.left > 0 && f+n < o.claimed.n && o.claim(f+n) {
				n++
				w.next++
				w.left--
			}
			return f, n
		}
		o.hot = o.hot[:len(o.hot)-1]
	}
	return o.sweep(limit)
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

// follow adds frame to the line that it continues, or begins a new one, and
// makes a window of what that line will touch next.
func (o *order) follow(frame int) {
	for i := range o.streams {
		s := &o.streams[i]
		step := frame - s.last
		switch {
		case !s.used || step == 0 || step > nearFrames || step < -nearFrames:
			if s.used && step == s.stride && step != 0 {
				o.extend(s, frame)
				return
			}
			continue
		case step == s.stride, s.stride > 0 && step > 0 && step%s.stride == 0:
			// A multiple of the stride: the background was there first.
			o.extend(s, frame)
		default:
			*s = stream{frame, step, minWindow, true}
			o.push(window{frame + step, step, minWindow})
		}
		return
	}
	o.streams[o.turn] = stream{frame, 1, minWindow, true}
	o.turn = (o.turn + 1) % len(o.streams)
	o.push(window{frame + 1, 1, minWindow})
}

func (o *order) extend(s *stream, frame int) {
	s.last, s.depth = frame, min(2*s.depth, maxWindow)
	o.push(window{frame + s.stride, s.stride, s.depth})
}

func (o *order) push(w window) {
	if len(o.hot) == hotLimit {
		o.hot = append(o.hot[:0], o.hot[1:]...)
	}
	o.hot = append(o.hot, w)
}
