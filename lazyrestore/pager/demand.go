package pager

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// A fault is a thread of a served process that waits for a page.
type fault struct {
	s     *space
	addr  page.Addr // of the page
	write bool
	tid   uint32
	at    int64 // when it was read, in the session's clock
	frame int   // of a parked fault
	old   bool  // it has been parked
	near  bool  // its thread runs through memory
}

// What a flight fetches: a frame, a huge page of one space, or a segment of the
// index. One that is lost it poisons in a space; what is away of a space it brings.
type flightKey struct {
	frame int // or segment
	index bool
	huge  *space
	lost  *space // to be poisoned there
	away  *space // what is away of it
	at    page.Addr
}

// A flight is one fetch and everyone who waits for it.
type flight struct {
	key     flightKey
	waiting []fault // guarded by demand.mu
}

// demand serves the faults that the reader cannot serve at once: those whose
// frame has to be waited for, and those that would queue behind others. All
// that wait for one frame share one flight. Workers start as they are needed.
type demand struct {
	*session
	limit int // of workers

	mu      sync.Mutex
	ready   sync.Cond
	flights map[flightKey]*flight // guarded by mu: queued and under way
	queue   []*flight             // guarded by mu
	workers int                   // guarded by mu
	idle    int                   // guarded by mu
	closed  bool                  // guarded by mu
	wg      sync.WaitGroup
}

func newDemand(se *session, limit int) *demand {
	d := &demand{session: se, limit: limit, flights: make(map[flightKey]*flight)}
	d.ready.L = &d.mu
	return d
}

// add has f served by the flight of key, which is begun if there is none.
func (d *demand) add(ctx context.Context, key flightKey, f fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if fl := d.flights[key]; fl != nil {
		fl.waiting = append(fl.waiting, f)
		return
	}
	fl := &flight{key, []fault{f}}
	d.flights[key] = fl
	d.queue = append(d.queue, fl)
	if d.idle == 0 && d.workers < d.limit {
		d.workers++
		d.wg.Go(func() { d.work(ctx) })
		return
	}
	d.ready.Signal()
}

// pending is how many flights are queued or under way.
func (d *demand) pending() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.flights)
}

// close ends the workers, once ctx has ended what they do, and waits for them.
func (d *demand) close() {
	d.mu.Lock()
	d.closed = true
	d.ready.Broadcast()
	d.mu.Unlock()
	d.wg.Wait()
}

func (d *demand) next() *flight {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.idle++
	for len(d.queue) == 0 && !d.closed {
		d.ready.Wait()
	}
	d.idle--
	if d.closed {
		return nil
	}
	fl := d.queue[0]
	d.queue = d.queue[1:]
	return fl
}

// waiting takes those who wait for fl by now. When there are none, the flight
// has landed: the next fault begins another.
func (d *demand) waiting(fl *flight) []fault {
	d.mu.Lock()
	defer d.mu.Unlock()
	fs := fl.waiting
	fl.waiting = nil
	if len(fs) == 0 {
		delete(d.flights, fl.key)
	}
	return fs
}

func (d *demand) work(ctx context.Context) {
	w := d.newWorker("demand")
	defer w.close()
	for fl := d.next(); fl != nil; fl = d.next() {
		switch {
		case fl.key.away != nil:
			d.flyAway(ctx, w, fl)
		case fl.key.lost != nil:
			d.flyLost(ctx, w, fl)
		case fl.key.index:
			d.flyIndex(ctx, w, fl)
		case fl.key.huge != nil:
			d.flyHuge(ctx, w, fl)
		default:
			d.fly(ctx, w, fl)
		}
		d.kick()
	}
}

// fly fetches a frame and installs it in every space that waits for it. It
// fetches nothing if the flight before has brought what they want: the reader
// may have added its fault to this one while that was landing.
func (d *demand) fly(ctx context.Context, w *worker, fl *flight) {
	frame := fl.key.frame
	from, to := w.frameNumbers(frame)
	var plain []byte
	var err error
	w.watch.begin()
	for fs := d.waiting(fl); len(fs) > 0; fs = d.waiting(fl) {
		for _, f := range fs {
			if plain == nil && err == nil && f.s.done.nextClear(from, to) < to {
				plain, err = w.fetch(ctx, frame, image.Demand)
				w.watch.hasDecoded()
			}
			switch {
			case ctx.Err() != nil:
				continue // they wait on, for a successor
			case err != nil:
				d.note(w.lose(ctx, f.s, frame, err))
			case plain != nil:
				d.note(w.installFrames(ctx, f.s, plain, frame, 1))
			}
			d.served(w, f)
		}
	}
}

// flyHuge puts a huge page together and installs it.
func (d *demand) flyHuge(ctx context.Context, w *worker, fl *flight) {
	for fs := d.waiting(fl); len(fs) > 0; fs = d.waiting(fl) {
		w.watch.begin()
		d.note(w.installHuge(ctx, fl.key.huge, fl.key.at, image.Demand))
		for _, f := range fs {
			if ctx.Err() == nil {
				d.served(w, f)
			}
		}
	}
}

// served wakes who waited, which the copy has done unless another one was
// first, and counts.
func (d *demand) served(w *worker, f fault) {
	if !f.s.ended.Load() {
		d.gate.enter()
		if !f.s.ended.Load() {
			_ = f.s.mem.Wake(uint64(f.addr), page.Size)
		}
		d.gate.leave()
	}
	end := d.now()
	d.stats.latency.add(time.Duration(end - f.at))
	w.watch.served(f, end)
}

// note logs what must not happen; a context's end may, and a wait for descriptors.
func (se *session) note(err error) {
	if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, errIndex) && !errors.Is(err, errKilled) && !errors.Is(err, errCrowded) {
		se.log.Error("install pages", "error", err)
	}
}
