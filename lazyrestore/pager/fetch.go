package pager

import (
	"context"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
)

const (
	// memoryBackoff is the longest wait between tries when memory is short.
	memoryBackoff = 100 * time.Millisecond
	// copyPause is how long to wait for the reader when the address space is
	// changing.
	copyPause = 20 * time.Microsecond
)

// fetch reads a frame with all patience (see patiently).
func (w *worker) fetch(ctx context.Context, frame int, lane image.Lane) ([]byte, error) {
	return w.fetchBy(ctx, w.frames, frame, lane)
}

// fetchBy is fetch with a reader of frames, whose the data is.
func (w *worker) fetchBy(ctx context.Context, frames *image.FrameReader, frame int, lane image.Lane) (plain []byte, err error) {
	err = w.patiently(ctx, func() (err error) {
		plain, err = frames.Read(ctx, frame, lane)
		return err
	})
	w.stats.fetched.Add(uint64(len(plain)))
	return plain, err
}

// put runs do, an install of the pages numbered from i up to j into s, in
// pieces inside the gate, and until it is done: it waits out changes of the
// address space and shortage of memory. The error is the context's, or that
// of something which should not be.
func (w *worker) put(ctx context.Context, s *space, i, j int, do func(i, j int) (outcome, error)) error {
	pause := time.Millisecond
	for i < j {
		w.gate.enter()
		to := min(j, i+w.piece()) // it may have been shut for a fault
		if s.ended.Load() {
			w.gate.leave()
			return nil
		}
		out, err := do(i, to)
		w.gate.leave()
		switch out {
		case there:
			i = to
			continue
		case dead:
			s.ended.Store(true)
			w.kick()
			return nil
		case full:
			if pause == time.Millisecond {
				w.log.Warn("no memory to install pages, waiting", "error", err)
			}
			if err := sleep(ctx, pause); err != nil {
				return err
			}
			pause = min(2*pause, memoryBackoff)
		case again:
			// The reader has an event to read; it is awake by that.
			if w.gate.closed.Load() {
				continue
			}
			if err := sleep(ctx, copyPause); err != nil {
				return err
			}
		default:
			return err
		}
	}
	return nil
}
