package pager

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/thread"
)

// The index is loaded by segments, as they are needed: what lies in one of
// them is served while others are still on their way. A segment is loaded by
// whoever needs it first, and opened by the reader: that settles, in every
// space, what of it nobody wants. Only then anyone looks at its pages' bits.

// restSegments is how many segments are loaded for faults before the others
// are too.
const restSegments = 4

// errIndex says that a segment of the index is lost, as the log has told.
var errIndex = errors.New("the part of the index that lists it is lost")

// errKilled says that the process was killed for it.
var errKilled = errors.New("the process is killed, since a part of the index is lost")

// An opening is what the reader is asked for by who has loaded a segment, or
// failed to.
type opening struct {
	segment int
	lost    error   // nil, or why it cannot be had
	faults  []fault // to be served then
	done    chan struct{}
}

// ask has the reader do o, and reports whether it has.
func (se *session) ask(ctx context.Context, o *opening) bool {
	o.done = make(chan struct{})
	select {
	case se.openings <- o:
	case <-ctx.Done():
		return false
	}
	se.kick()
	select {
	case <-o.done:
		return true
	case <-ctx.Done():
		return false
	}
}

// openAll does what the reader was asked for.
func (r *reader) openAll() {
	for {
		select {
		case o := <-r.openings:
			r.open(o.segment, o.lost)
			r.queue = append(r.queue, o.faults...)
			close(o.done)
		default:
			return
		}
	}
}

// open has segment i, which is loaded, or lost for a cause, served from. Only the
// reader calls it, for it looks at the models.
func (se *session) open(i int, cause error) *segment {
	if sg := se.pages.opened[i].Load(); sg != nil {
		return sg
	}
	sg := se.pages.segment(i, cause)
	for _, s := range append(slices.Clone(*se.spaces.Load()), se.expected...) {
		s.enter(se.pages, i, sg)
		se.loseIn(s, sg)
	}
	se.pages.opened[i].Store(sg)
	se.pages.closed.Add(-1)
	return sg
}

// openNow is segment i, if it is opened or can be without waiting; else nil.
func (r *reader) openNow(i int) *segment {
	if sg := r.opened[i].Load(); sg != nil {
		return sg
	}
	if !r.Loaded(i) {
		n := r.SegmentBytes(i)
		if len(r.spare) < n {
			r.spare = r.mem.alloc(n)
		}
		if ok, err := r.LoadNow(i, r.spare[:n:n]); !ok || err != nil {
			return nil
		}
		r.spare = nil
		if r.loaded++; r.loaded == restSegments {
			r.wantRest()
		}
	}
	return r.open(i, nil)
}

// segmentsAhead bounds how many segments are opened for processes that have not
// come yet, 4 GiB with chunks of 64 KiB: to open one takes some 0.3 ms where
// memory is in many pieces.
const segmentsAhead = 64

// openAhead opens what can be opened without waiting for the processes that
// are expected, so that their first faults need not.
func (r *reader) openAhead() {
	if len(r.expected) == 0 {
		return
	}
	for i := range min(r.Segments(), segmentsAhead) {
		if r.openNow(i) == nil {
			return
		}
	}
}

// openFor has segment i opened for a fault, and reports whether it is. If not,
// the fault is served, or will be.
func (r *reader) openFor(f fault, i int) bool {
	sg := r.openNow(i)
	switch {
	case sg == nil:
		r.demand.add(r.ctx, flightKey{index: true, frame: i}, f)
		return false
	case sg.lost(): // and the page is not poisoned yet, or came later
		v, did := r.poisonAt(f)
		if did { // and perhaps the process ends before a worker comes to it
			r.tell(sg)
		}
		r.finish(f, v)
		return false
	}
	return true
}

// openSegment has segment i opened for a worker. The error is errIndex,
// errKilled, or the context's.
func (w *worker) openSegment(ctx context.Context, i int, lane image.Lane) error {
	sg := w.opened[i].Load()
	if sg == nil {
		if err := w.loadSegment(ctx, i, lane); err != nil {
			return w.loseSegment(ctx, i, err)
		}
		if !w.ask(ctx, &opening{segment: i}) {
			return ctx.Err()
		}
		sg = w.opened[i].Load()
	}
	if sg.lost() {
		return errIndex
	}
	return nil
}

// openRange is openSegment for all that list some of the image range r.
func (w *worker) openRange(ctx context.Context, r page.Range, lane image.Lane) error {
	for i := max(w.SegmentAt(r.Start), 0); i < w.Segments() && w.SegmentRange(i).Overlaps(r); i++ {
		if err := w.openSegment(ctx, i, lane); err != nil {
			return err
		}
	}
	return nil
}

// loadSegment loads segment i with all patience (see patiently).
func (se *session) loadSegment(ctx context.Context, i int, lane image.Lane) error {
	if lane == image.Background { // those that fill come to a segment at once
		se.indexing.Lock()
		defer se.indexing.Unlock()
	}
	if se.pages.Loaded(i) {
		return nil
	}
	buf := se.pages.mem.alloc(se.pages.SegmentBytes(i))
	return se.patiently(ctx, func() error { return se.pages.Load(ctx, i, buf, lane) })
}

// wantRest has loadRest begin.
func (se *session) wantRest() {
	select {
	case se.restWanted <- struct{}{}:
	default:
	}
}

// loadRest loads what nobody needs yet: at once from a source that one waits
// for, else once faults have come for several segments, the first of which have
// the machine to themselves. It gives way to faults.
func (se *session) loadRest(ctx context.Context) {
	select {
	case <-se.restWanted:
	case <-ctx.Done():
		return
	}
	runtime.LockOSThread() // which is not given back: its priority would stay
	behind := thread.FallBehind()
	for i := range se.pages.Segments() {
		if ctx.Err() != nil {
			return
		}
		behind.Yield(se.active())
		if err := se.loadSegment(ctx, i, image.Background); err != nil && ctx.Err() == nil {
			se.log.Debug("load the index", "segment", i, "error", err) // who needs it tells
		}
	}
}

// flyIndex loads a segment of the index and lets the reader serve those who
// wait for it.
func (d *demand) flyIndex(ctx context.Context, w *worker, fl *flight) {
	i := fl.key.frame
	err := w.openSegment(ctx, i, image.Demand)
	for fs := d.waiting(fl); len(fs) > 0; fs = d.waiting(fl) {
		if w.opened[i].Load() != nil { // else they wait on
			d.ask(ctx, &opening{segment: i, faults: fs})
		}
	}
	d.note(err)
}

// loseSegment gives up segment i: cause is why it cannot be had. What it does
// not list is zero, and nobody knows what that is: all of the memory that it
// may list is lost. The error says so: those who touch it get SIGBUS from then on,
// and poisonOwed sees to what nobody touches.
func (w *worker) loseSegment(ctx context.Context, i int, cause error) error {
	for _, s := range *w.spaces.Load() {
		w.gate.enter()
		concerned := !s.ended.Load() && s.holds(w.SegmentRange(i))
		w.gate.leave()
		if !concerned {
			continue
		}
		if killed, err := w.killFor(s, cause); err != nil {
			return err
		} else if killed {
			return errKilled
		}
	}
	if !w.ask(ctx, &opening{segment: i, lost: cause}) {
		return ctx.Err()
	}
	return errIndex
}

// owed is segments of the index that are lost, and whose memory is not poisoned yet in
// a space. As long as there are any the space is not let go of: missing memory would be zeros.
type owed struct {
	n  atomic.Int32 // with those under way
	mu sync.Mutex
	of []int // guarded by mu: those that are not under way
}

// add enters segments that nobody works at.
func (o *owed) add(segments ...int) {
	o.n.Add(int32(len(segments)))
	o.again(segments...)
}

// again is add for what was under way.
func (o *owed) again(segments ...int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.of = append(o.of, segments...)
}

// take hands all that nobody works at to the caller.
func (o *owed) take() []int {
	o.mu.Lock()
	defer o.mu.Unlock()
	of := o.of
	o.of = nil
	return of
}

// poisonOwed has the demand workers poison what s has of lost segments: of a process that is
// being built once that is done, for before not all of its memory can be.
func (r *reader) poisonOwed(s *space) {
	if s.owed.n.Load() == 0 || r.session.forming.Load() || s.crowded.Load() {
		return
	}
	for _, i := range s.owed.take() {
		r.demand.add(r.ctx, flightKey{index: true, frame: i, lost: s}, fault{s: s})
	}
}

// flyLost poisons what a space has of a segment that is lost.
func (d *demand) flyLost(ctx context.Context, w *worker, fl *flight) {
	s, i := fl.key.lost, fl.key.frame
	err := w.poisonSegment(ctx, s, i)
	entries := int32(0) // of the segment, which may have been entered again meanwhile; it is nobody who waits
	for fs := d.waiting(fl); len(fs) > 0; fs = d.waiting(fl) {
		entries += int32(len(fs))
	}
	switch {
	case err == nil:
		s.owed.n.Add(-entries)
	case errors.Is(err, errCrowded):
		s.owed.n.Add(1 - entries)
		s.owed.again(i)
	default:
		d.note(err) // and the space stays
	}
}

// tell counts a lost segment among what is lost, once: whoever poisons the first of its memory.
func (se *session) tell(sg *segment) {
	if sg.told.CompareAndSwap(false, true) {
		se.lost.add(sg.cause)
	}
}

// poisonSegment poisons what s has of segment i, which is lost, or kills the process for it.
func (w *worker) poisonSegment(ctx context.Context, s *space, i int) error {
	sg := w.opened[i].Load()
	r, cause := sg.within, sg.cause
	var list []page.Mapping
	w.gate.enter()
	s.places(r, func(m page.Mapping) { list = append(list, m) })
	w.gate.leave()
	if s.ended.Load() || len(list) == 0 {
		return nil
	}
	if killed, err := w.killFor(s, cause); err != nil {
		return err
	} else if killed {
		return errKilled
	}
	w.tell(sg)
	w.log.Error("a part of the index is lost, and its memory poisoned: touching it raises SIGBUS", "memory", r.String(), "error", cause)
	for _, m := range list {
		if m.Shared {
			s.hasLost.Store(true)
		}
		n := int((m.Len() + m.PageSize - 1) / m.PageSize)
		err := w.put(ctx, s, 0, n, unlessCrowded(s, func(i, j int) (outcome, error) {
			return w.poisonPlaces(s, page.RangeOf(m.Image+page.Addr(uint64(i)*m.PageSize), uint64(j-i)*m.PageSize))
		}))
		if err != nil {
			return err
		}
	}
	return nil
}

// poisonPlaces poisons where the image range r is in s by now, in whole pages
// of whatever size. The caller is inside the gate.
func (in *installer) poisonPlaces(s *space, r page.Range) (out outcome, err error) {
	s.places(r, func(m page.Mapping) {
		if out != there {
			return
		}
		size := page.Addr(m.PageSize)
		start, end := m.Start&^(size-1), (m.End+size-1)&^(size-1)
		out, err = apply(s.mem, start, int(end-start), int(size),
			func(at page.Addr, _, n int) (int64, error) { return s.mem.Poison(uint64(at), uint64(n), 0) },
			func(_, n int, how outcome) {
				if how == there {
					in.tally.poisoned.Add(uint64(n))
				}
			})
	})
	return out, err
}
