package pager

import (
	"fmt"
	"slices"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// A fault is served by the reader itself where that can be done without waiting
// for a source, and is handed on where not.

const (
	// inlineLimit is how many faults may queue before the rest goes to the
	// demand workers: waking one costs as much as serving some inline.
	inlineLimit = 3
	// stuckWakes is how often one fault may be answered by waking alone: the
	// page should be there.
	stuckWakes = 4096
	// maxWoken is of how many pages it is known at a time how often they were woken for.
	maxWoken = 1024
)

// serve serves the first fault of the queue, or hands it on.
func (r *reader) serve() {
	f := r.queue[r.head]
	switch r.head++; {
	case r.head == len(r.queue):
		r.queue, r.head = r.queue[:0], 0
	case r.head > 64 && 2*r.head >= len(r.queue):
		// Faults that are tried again and again keep it from ever being empty.
		r.queue, r.head = slices.Delete(r.queue, 0, r.head), 0
	}
	if f.s.ended.Load() {
		return
	}
	if f.s.unsettled() || f.s.crowded.Load() {
		r.finish(f, retry) // nobody knows what is where
		return
	}
	if r.pace.lull > 0 && !r.streaming.Load() { // in a stream both have work at once
		r.follower.fault(f)
	}
	r.watch.begin()
	r.place(f)
	r.follower.served()
}

// place serves a fault by what is to be at its address, or hands it on.
func (r *reader) place(f fault) {
	m, ok := f.s.find(f.addr)
	if !ok {
		if r.grown(f) {
			return
		}
		r.finish(f, r.zero(f, m, f.s.gap(f.addr, page.RangeOf(f.addr, maxZero)).End))
		return
	}
	if m.PageSize != page.Size {
		r.demand.add(r.ctx, flightKey{huge: f.s, at: f.addr &^ page.Addr(m.PageSize-1)}, f)
		return
	}
	at := m.ImageAddr(f.addr)
	if seg := r.SegmentAt(at); seg >= 0 && !r.openFor(f, seg) {
		return
	}
	run, ok := r.Lookup(at)
	switch {
	case ok && run.Kind == image.Stored:
		r.finish(f, r.stored(f, run, r.number(run, at)))
	default:
		limit := min(at+maxZero, m.ImageRange().End)
		r.finish(f, r.zero(f, m, f.addr+(r.table.stored(at, limit)-at)))
	}
}

// verdict is what became of a fault in the reader's hands.
type verdict uint8

const (
	settled verdict = iota // the page is there, the thread runs
	retry                  // the address space is changing
	starved                // memory is short
	handed                 // a demand worker has it
)

func (r *reader) finish(f fault, v verdict) {
	switch v {
	case settled:
		end := r.now()
		r.stats.latency.add(time.Duration(end - f.at))
		r.watch.served(f, end)
	case retry:
		if f.s.crowded.Load() {
			r.later = append(r.later, f) // it takes its time
			return
		}
		r.queue = append(r.queue, f)
	case starved:
		r.later = append(r.later, f)
	case handed:
	}
}

// stored serves a fault on page number n, in the frame of run.
func (r *reader) stored(f fault, run image.Run, n int) verdict {
	if f.s.done.get(n) {
		return r.wake(f, n)
	}
	frame := int(run.Frame)
	if !f.old {
		if !r.session.forming.Load() { // what is being built does not run through memory
			f.near = r.rows.fault(f, frame)
			r.streaming.Store(r.rows.stream())
		}
		f.s.order.touch(frame)
	}
	plain, base, e := r.decoded(frame)
	if plain == nil && e != nil {
		if v, ok := r.another(f, e, n); ok {
			return v
		}
		if r.load(e, frame) {
			plain = e.plain
		} else {
			e = nil
		}
	}
	if free := f.s.order.claim(frame); !free && plain == nil && r.background && !f.old {
		f.frame = frame
		r.parked = append(r.parked, f)
		return handed
	}
	// A thread that runs through memory had better find all of the chunk, and
	// so does one that comes back to it.
	whole := f.near || e != nil || r.pace.besieged()
	if plain == nil && !whole {
		if v, ok := r.alone(f, frame, n); ok {
			return v
		}
	}
	if plain == nil {
		if e = r.fetchNow(frame); e == nil {
			r.demand.add(r.ctx, flightKey{frame: frame}, f) // it has patience
			return handed
		}
		plain, base = e.plain, r.from(frame)
	}
	from, to := r.frameNumbers(frame)
	if whole {
		return r.settle(f.s, plain, base, from, to)
	}
	// The page that is waited for; the rest when nobody waits.
	v := r.settle(f.s, plain, base, n, n+1)
	switch {
	case e != nil && v == settled:
		e.s, e.next = f.s, from
	case e != nil:
		f.s.order.giveBack(frame)
	}
	return v
}

// alone serves a fault with one page where the source gives pages one by one;
// the rest of its frame is read when nobody waits.
func (r *reader) alone(f fault, frame, n int) (v verdict, ok bool) {
	if v, ok = r.onePage(f, frame, n); !ok {
		return v, false
	}
	if v != settled {
		f.s.order.giveBack(frame)
		return v, true
	}
	e := r.freeRest()
	e.s, e.frame, e.next = f.s, frame, r.from(frame)
	return v, true
}

// another serves a fault on one more page of a chunk that has not been read yet. Two may be there
// by chance, and all of it takes several times as long; from the third on ok is false.
func (r *reader) another(f fault, e *rest, n int) (v verdict, ok bool) {
	if e.s != f.s || e.again || f.near || r.pace.besieged() {
		return settled, false
	}
	e.again = true
	return r.onePage(f, e.frame, n)
}

// onePage installs page number n of frame, where the source gives pages one by one.
func (r *reader) onePage(f fault, frame, n int) (v verdict, ok bool) {
	plain, ok, err := r.frames.ReadPartNow(frame, (n-r.from(frame))<<page.Shift, page.Size)
	if err != nil || !ok {
		return settled, false
	}
	r.watch.hasDecoded()
	r.stats.fetched.Add(page.Size)
	return r.settle(f.s, plain, n, n, n+1), true
}

// fetchNow reads and decodes frame if that can be done without waiting, and
// if there are not so many faults that others had better help.
func (r *reader) fetchNow(frame int) *rest {
	if len(r.queue)-r.head >= inlineLimit {
		return nil
	}
	e := r.freeRest()
	if !r.load(e, frame) {
		return nil
	}
	r.watch.hasDecoded()
	return e
}

// load has e hold frame, if that can be had without waiting.
func (r *reader) load(e *rest, frame int) bool {
	plain, ok, err := e.frames.ReadNow(frame)
	if err != nil || !ok {
		return false
	}
	r.stats.fetched.Add(uint64(len(plain)))
	e.plain, e.frame = plain, frame
	return true
}

// settle installs the pages numbered from i up to j.
func (r *reader) settle(s *space, plain []byte, first, i, j int) verdict {
	if j == i+1 { // the one that is waited for
		out, err := r.installTouched(s, plain, first, i)
		return r.judge(s, out, err)
	}
	out, err := r.install(s, plain, first, i, j)
	return r.judge(s, out, err)
}

// judge turns an install's outcome into what to do with the fault.
func (r *reader) judge(s *space, out outcome, err error) verdict {
	switch out {
	case again:
		return retry
	case full:
		return starved
	case dead:
		s.ended.Store(true)
		r.kicks.Add(1)
	case broken:
		r.note(err)
	default:
	}
	return settled
}

// wake answers a fault on a page that is there by now. One that comes back
// for ever is on a page that went without an event: zero where a guard did that, and else
// nothing is known about its content, so it is poisoned. So is one that was lost. Where many threads
// have waited for one page it is there all the same.
func (r *reader) wake(f fault, n int) verdict {
	s := f.s
	if s.isLost(n) {
		v, _ := r.poisonAt(f)
		return v
	}
	if s.woken == nil {
		s.woken = make(map[page.Addr]int)
	}
	wakes := s.woken[f.addr] + 1 // of each: two threads may take turns with two such pages
	if wakes == 1 && len(s.woken) == maxWoken {
		clear(s.woken)
	}
	s.woken[f.addr] = wakes
	if wakes > 1 && r.wasZapped(f, wakes) {
		return r.zero(f, page.Mapping{}, f.addr+page.Size)
	}
	if wakes <= stuckWakes {
		_ = s.mem.Wake(uint64(f.addr), page.Size)
		return settled
	}
	v, did := r.poisonAt(f)
	if did {
		err := fmt.Errorf("page at %v, number %d, was there and is missing", f.addr, n)
		r.log.Error("page is lost and poisoned: touching it raises SIGBUS", "error", err)
		r.lost.add(err)
	}
	return v
}
