package pager

import (
	"context"
	"runtime"
	"strconv"
	"sync/atomic"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/thread"
)

const (
	// Spans are what a background worker fetches and decodes at a time. Larger
	// copies are hardly quicker (32 KiB 2.4-3.1 GB/s, 256 KiB 2.9-4.0), and
	// this bounds what a worker holds. While faults come, the next one may be
	// for the span that is being decoded.
	smallSpan = 64 << 10
	largeSpan = 256 << 10
	// offersEach is how many spans a worker may have waiting for the reader.
	offersEach = 3
)

// An offer is a span that a worker has decoded, for the reader to install
// between faults. While they give way to faults, workers do not copy
// themselves: one that is preempted inside the gate would hold up the reader for
// milliseconds.
type offer struct {
	frames   *image.FrameReader // plain is its
	plain    []byte
	first, n int         // frames
	by       *filler     // whose it is
	done     atomic.Bool // the reader is done with plain
	out      bool        // of the worker: the reader has it

	next int // of the reader: the page number it has come to
}

// A filler is a background worker.
type filler struct {
	worker
	behind *thread.Behind
	slots  [offersEach]offer
	turn   int
	owed   atomic.Int32  // offers that the reader is not done with
	back   chan struct{} // has a token once that is none
}

// fill fetches frames in the order that the spaces' orders say and installs
// them everywhere, until ctx is done. k counts the background workers.
func (se *session) fill(ctx context.Context, k int) {
	// The thread is not given back: its priority would stay.
	runtime.LockOSThread()
	w := &filler{behind: thread.FallBehind(), worker: *se.newWorker("background " + strconv.Itoa(k)), back: make(chan struct{}, 1)}
	for i := range w.slots {
		w.slots[i].frames, w.slots[i].by = w.newFrames(), w
	}
	defer func() {
		w.close()
		for i := range w.slots {
			w.slots[i].frames.Close()
		}
	}()
	spare := max(1, runtime.NumCPU()-1)
	for ctx.Err() == nil {
		if se.waitGathered(ctx) {
			continue
		}
		if !se.giveWay() {
			se.rouse()
		} else if k >= spare {
			se.stepAside(ctx) // the reader and the application need a processor each
		}
		w.behind.Yield(se.giveWay())
		if w.work(ctx) {
			continue
		}
		se.kick()  // the reader sees whether that was all
		se.rouse() // they may still have something to do
		select {
		case <-se.more:
		case <-ctx.Done():
		}
	}
}

// stepAside has a worker wait until faults do not come any more, as another worker
// finds, or until that has nothing to do. It may be held up itself, for as long as its
// source gives nothing, and then the reader finds it (rest). Like those who wait for the reader (reclaim) it does not look itself: by way of Go
// each look wakes three threads, mostly on the processor of the reader, which costs a fault
// more than all the rest of it.
func (se *session) stepAside(ctx context.Context) {
	se.aside.Add(1)
	defer se.aside.Add(-1)
	if se.exhausted.Load() {
		return // as it may have been found just before
	}
	if se.resting.Load() {
		se.nudge() // it sleeps until something happens, and nothing might
	}
	for {
		select {
		case <-se.calm:
			if !se.giveWay() || se.exhausted.Load() {
				return
			} // else it was for who waited before, or they have begun again
		case <-ctx.Done():
			return
		}
	}
}

// rouse has those go on who have stepped aside.
func (se *session) rouse() {
	for range se.aside.Load() {
		select {
		case se.calm <- struct{}{}:
		default:
			return
		}
	}
}

// work does some, and notes where there is none. That there is more again only
// wakeBackground says: who does the last span ends it later than another who has
// found nothing, and may not look again while faults come.
func (w *filler) work(ctx context.Context) bool {
	w.busy.Add(1)
	defer w.busy.Add(-1)
	worked := w.fillSome(ctx)
	if !worked {
		w.exhausted.Store(true)
	}
	return worked
}

// fillSome does one span of the first space that has one free. When there is
// none it has nothing under way either.
func (w *filler) fillSome(ctx context.Context) bool {
	span := largeSpan
	if w.giveWay() {
		span = smallSpan
	}
	for _, s := range *w.spaces.Load() {
		if s.ended.Load() || s.crowded.Load() {
			continue
		}
		if first, n := s.order.next(max(1, span/w.ChunkSize())); n > 0 {
			w.fillFrames(ctx, first, n)
			return true
		}
	}
	for i := range w.slots {
		w.reclaim(ctx, &w.slots[i])
	}
	return false
}

// fillFrames does the n frames from first on, which may lie in several
// segments of the index.
func (w *filler) fillFrames(ctx context.Context, first, n int) {
	for n > 0 && ctx.Err() == nil {
		seg := w.SegmentOf(first)
		_, end := w.SegmentFrames(seg)
		k := min(n, end-first)
		if err := w.openSegment(ctx, seg, image.Background); err != nil {
			w.note(err)
		} else {
			w.fillSpan(ctx, first, k)
		}
		first, n = first+k, n-k
	}
}

// fillSpan fetches what is still missing of the n frames from first on, and
// has it installed in every space.
func (w *filler) fillSpan(ctx context.Context, first, n int) {
	for n > 0 && !w.wanted(first) {
		first, n = first+1, n-1
	}
	for n > 0 && !w.wanted(first+n-1) {
		n--
	}
	if n == 0 {
		return
	}
	// What is not out is used again: it is in the processor's cache.
	if w.slots[w.turn].out {
		w.turn = (w.turn + 1) % len(w.slots)
	}
	o := &w.slots[w.turn]
	w.reclaim(ctx, o)
	if ctx.Err() != nil {
		return
	}
	w.behind.Yield(w.giveWay()) // it may have been in the gate
	w.watch.begin()
	plain, err := o.frames.ReadSpan(ctx, first, n, image.Background)
	w.watch.hasDecoded()
	if err != nil {
		w.fillSlowly(ctx, first, n)
		return
	}
	defer w.watch.filled(first, n, len(plain))
	w.stats.fetched.Add(uint64(len(plain)))
	w.outage.over(w.log)
	o.plain, o.first, o.n, o.next = plain, first, n, w.from(first)
	if !w.giveWay() {
		w.fillSpaces(ctx, plain, first, n)
		if w.parking.Load() {
			w.nudge()
		}
		return
	}
	o.out = true
	o.done.Store(false)
	w.owed.Add(1)
	w.offers <- o // has room for all
	if w.resting.Load() {
		w.kick()
	}
}

// isDone notes that the reader is done with o. It wakes the worker, if that waits, when it has
// none of its offers any more: to wake a thread by way of Go takes longer than serving a fault.
func (o *offer) isDone() {
	o.done.Store(true)
	if o.by.owed.Add(-1) > 0 {
		return
	}
	select {
	case o.by.back <- struct{}{}:
	default:
	}
}

// reclaim waits until the reader is done with o, and does what the reader left:
// huge pages, and what memory was short for.
func (w *filler) reclaim(ctx context.Context, o *offer) {
	if !o.out {
		return
	}
	for !o.done.Load() {
		select {
		case <-w.back:
		case <-ctx.Done():
			return // the reader may still look at it, so it stays out
		}
	}
	o.out = false
	for frame := o.first; frame < o.first+o.n; frame++ {
		if w.wanted(frame) {
			w.fillSpaces(ctx, o.plain, o.first, o.n)
			return
		}
	}
}

// fillSlowly fetches one by one, with all patience: only what really cannot
// be had is lost.
func (w *filler) fillSlowly(ctx context.Context, first, n int) {
	for frame := first; frame < first+n && ctx.Err() == nil; frame++ {
		if !w.wanted(frame) {
			continue
		}
		w.behind.Yield(w.giveWay()) // again, after each time in the gate
		plain, err := w.fetch(ctx, frame, image.Background)
		if err == nil {
			w.fillSpaces(ctx, plain, frame, 1)
			continue
		}
		w.behind.Yield(false) // as in fillSpaces
		for _, s := range *w.spaces.Load() {
			if ctx.Err() == nil && !s.crowded.Load() {
				w.note(w.lose(ctx, s, frame, err))
			}
		}
	}
}

// wanted reports whether any space misses a page of frame, and can be given it.
func (w *worker) wanted(frame int) bool {
	i, j := w.frameNumbers(frame)
	for _, s := range *w.spaces.Load() {
		if !s.ended.Load() && !s.crowded.Load() && s.done.nextClear(i, j) < j {
			return true
		}
	}
	return false
}

// fillSpaces installs n frames from first on wherever they are wanted. It goes into the gate, and nobody is to
// wait for that because of who has its processor.
func (w *filler) fillSpaces(ctx context.Context, plain []byte, first, n int) {
	w.behind.Yield(false)
	for _, s := range *w.spaces.Load() {
		w.note(w.installFrames(ctx, s, plain, first, n))
	}
}

// installFrames installs n frames from first on, whose plain data lies one
// after the other in plain, as far as s wants them. Huge pages come last.
func (w *worker) installFrames(ctx context.Context, s *space, plain []byte, first, n int) error {
	base, end := w.spanNumbers(first, n)
	var huge []page.Addr
	err := w.put(ctx, s, base, end, unlessCrowded(s, func(i, j int) (outcome, error) {
		out, err := w.install(s, plain, base, i, j)
		huge = append(huge, w.huge...)
		return out, err
	}))
	for _, at := range huge {
		if err == nil {
			err = w.installHuge(ctx, s, at, image.Background)
		}
	}
	return err
}
