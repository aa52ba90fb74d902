package pager

import (
	"context"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// spanBytes is how much plain data a background worker fetches, decodes and
// copies at a time: larger copies are hardly quicker (kernel: 32 KiB 2.4-3.1
// GB/s, 256 KiB 2.9-4.0), and this bounds what a worker holds.
const spanBytes = 256 << 10

// fill is a background worker: it fetches frames in the order that the
// spaces' orders say and installs them everywhere, until ctx is done.
func (se *session) fill(ctx context.Context) {
	w := se.newWorker()
	defer w.close()
	span := max(1, spanBytes/se.pages.ChunkSize())
	for ctx.Err() == nil {
		se.busy.Add(1)
		worked := w.fillSome(ctx, span)
		se.busy.Add(-1)
		if worked {
			continue
		}
		se.kick() // the reader sees whether that was all
		select {
		case <-se.more:
		case <-ctx.Done():
		}
	}
}

// fillSome does one span of the first space that has one free.
func (w *worker) fillSome(ctx context.Context, span int) bool {
	for _, s := range *w.spaces.Load() {
		if s.ended.Load() {
			continue
		}
		if first, n := s.order.next(span); n > 0 {
			w.fillSpan(ctx, first, n)
			return true
		}
	}
	return false
}

// fillSpan fetches what is still missing of the n frames from first on, and
// installs it in every space.
func (w *worker) fillSpan(ctx context.Context, first, n int) {
	for n > 0 && !w.wanted(first) {
		first, n = first+1, n-1
	}
	for n > 0 && !w.wanted(first+n-1) {
		n--
	}
	if n == 0 {
		return
	}
	plain, err := w.frames.ReadSpan(ctx, first, n, image.Background)
	if err == nil {
		w.stats.fetched.Add(uint64(len(plain)))
		w.fillSpaces(ctx, plain, first, n)
		return
	}
	// One by one, with all patience: only what really cannot be had is lost.
	for frame := first; frame < first+n && ctx.Err() == nil; frame++ {
		if !w.wanted(frame) {
			continue
		}
		plain, err := w.fetch(ctx, frame, image.Background)
		if err == nil {
			w.fillSpaces(ctx, plain, frame, 1)
			continue
		}
		for _, s := range *w.spaces.Load() {
			if ctx.Err() == nil {
				w.note(w.lose(ctx, s, frame, err))
			}
		}
	}
}

// wanted reports whether any space misses a page of frame.
func (w *worker) wanted(frame int) bool {
	i, j := int(w.base[frame]), int(w.base[frame+1])
	for _, s := range *w.spaces.Load() {
		if !s.ended.Load() && s.done.nextClear(i, j) < j {
			return true
		}
	}
	return false
}

// An offer is a span that a worker has decoded, for the reader to install
// between faults. While faults come, workers do not copy themselves: one that
// is preempted inside the gate would hold up the reader for milliseconds.
type offer struct {
	plain    []byte
	first, n int           // frames
	done     chan struct{} // gets a token when the reader is done with plain

	next int // of the reader: the page number it has come to
}

// offer has the reader install a span, as far as it can.
func (w *worker) offer(ctx context.Context, plain []byte, first, n int) {
	w.offered = offer{plain: plain, first: first, n: n, done: w.offered.done, next: int(w.base[first])}
	select {
	case w.offers <- &w.offered:
	case <-ctx.Done():
		return
	}
	if w.resting.Load() {
		w.kick()
	}
	select {
	case <-w.offered.done:
	case <-ctx.Done():
		// The reader may still look at plain. So nobody uses the worker, and
		// with it the memory, again.
	}
}

func (w *worker) fillSpaces(ctx context.Context, plain []byte, first, n int) {
	if w.active() {
		w.offer(ctx, plain, first, n)
	}
	for _, s := range *w.spaces.Load() {
		w.note(w.installFrames(ctx, s, plain, first, n))
	}
}

// installFrames installs n frames from first on, whose plain data lies one
// after the other in plain, as far as s wants them. Huge pages come last and
// reuse what plain was read into.
func (w *worker) installFrames(ctx context.Context, s *space, plain []byte, first, n int) error {
	base, end := int(w.base[first]), int(w.base[first+n])
	var huge []page.Addr
	err := w.put(ctx, s, base, end, func(i, j int) (outcome, error) {
		out, err := w.install(s, plain, base, i, j)
		huge = append(huge, w.huge...)
		return out, err
	})
	for _, at := range huge {
		if err == nil {
			err = w.installHuge(ctx, s, at, image.Background)
		}
	}
	return err
}
