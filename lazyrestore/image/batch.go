package image

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// batchSize is about how much plain data a batch holds: enough that handing it
// from goroutine to goroutine costs nothing beside its work, and that a write
// is a large one. All batches of a Writer together hold about batchesSize.
const (
	batchSize   = 1 << 20
	batchesSize = 16 << 20
)

// A batch is adjacent or near-by memory on its way through the pipeline.
type batch struct {
	pieces []piece
	plain  int    // bytes in pieces
	own    []byte // memory of pieces that were copied; pieces of it stay valid as it never grows
	calls  []*call

	// Made by the worker.
	out    []byte        // the frames, unless they are parts of pieces
	parts  [][]byte      // the frames' bytes in order
	frames []outFrame    // one for each frame
	runs   []Run         // of all frames; Frame is not set yet
	zero   uint64        // bytes of zero pages
	ready  chan struct{} // one token: the worker is done
}

// A piece is adjacent pages from one call of WriteRun.
type piece struct {
	at page.Addr
	p  []byte
}

// An outFrame is an encoded frame.
type outFrame struct {
	Frame
	digest chunk.Digest
	runs   int
}

// A call is a WriteRun whose memory is in use. When the last batch that has
// some of it is done, the caller gets it back.
type call struct {
	refs    atomic.Int32
	release func()
}

func (c *call) unref() {
	if c.refs.Add(-1) == 0 && c.release != nil {
		c.release()
	}
}

// WriteRun adds adjacent pages to the image, the first of which has image
// address at. Runs come in ascending order and do not overlap. p belongs to
// the Writer until it calls release (which may be nil), exactly once, maybe
// from another goroutine and maybe before WriteRun returns, and also when
// WriteRun returns an error. The Writer never holds on to p while it waits for
// another call: a caller may wait for release before it goes on.
//
// WriteRun blocks while enough is on its way. An error may be about earlier
// runs; the Writer is then of no use but for Abort.
func (w *Writer) WriteRun(ctx context.Context, at page.Addr, p []byte, release func()) error {
	c := &call{release: release}
	c.refs.Store(1)
	defer c.unref()
	err := w.writeRun(ctx, at, p, c)
	if err != nil && !w.done {
		w.pipe.fail(err) // an image without this run must not be finished
	}
	return err
}

func (w *Writer) writeRun(ctx context.Context, at page.Addr, p []byte, c *call) error {
	end := at + page.Addr(len(p))
	switch {
	case w.done:
		return errWriterDone
	case !at.Aligned() || len(p)%page.Size != 0:
		return fmt.Errorf("write %d bytes at %s: %w", len(p), at, errUnaligned)
	case at < w.next || end < at:
		return fmt.Errorf("write %d bytes at %s, after memory up to %s: %w", len(p), at, w.next, errOrder)
	}
	w.next = end
	w.pipe.memory.Add(uint64(len(p)))
	window := w.opts.ChunkSize
	if len(p) >= 2*window && len(p) >= w.pipe.batch/4 {
		// The part up to the next window may share one with the run before.
		head := int(-at & page.Addr(window-1))
		if err := w.collect(ctx, at, p[:head]); err != nil {
			return err
		}
		if err := w.submitCur(ctx); err != nil {
			return err
		}
		at, p = at+page.Addr(head), p[head:]
		for len(p) >= window {
			n := min(len(p)/window*window, w.pipe.batch)
			if err := w.submitPart(ctx, at, p[:n], c); err != nil {
				return err
			}
			at, p = at+page.Addr(n), p[n:]
		}
	}
	return w.collect(ctx, at, p)
}

// submitPart sends a part of a call's memory on its way as a batch.
func (w *Writer) submitPart(ctx context.Context, at page.Addr, p []byte, c *call) error {
	b, err := w.pipe.get(ctx)
	if err != nil {
		return err
	}
	c.refs.Add(1)
	b.calls = append(b.calls, c)
	b.pieces = append(b.pieces, piece{at, p})
	b.plain = len(p)
	w.pipe.submit(b)
	return nil
}

// collect copies p into the batch of small pieces, and sends that on its way
// whenever it is full.
func (w *Writer) collect(ctx context.Context, at page.Addr, p []byte) error {
	for len(p) > 0 {
		if w.cur != nil && w.cur.plain+page.Size > w.pipe.batch {
			if err := w.submitCur(ctx); err != nil {
				return err
			}
		}
		if w.cur == nil {
			b, err := w.pipe.get(ctx)
			if err != nil {
				return err
			}
			if b.own == nil {
				b.own = make([]byte, w.pipe.batch)
			}
			w.cur = b
		}
		b := w.cur
		n := min(len(p), len(b.own)-b.plain)
		own := b.own[b.plain : b.plain+n]
		copy(own, p)
		b.pieces = append(b.pieces, piece{at, own})
		b.plain += n
		at, p = at+page.Addr(n), p[n:]
	}
	return nil
}

// submitCur sends the small pieces on their way, if there are any.
func (w *Writer) submitCur(ctx context.Context) error {
	if w.cur == nil {
		return nil
	}
	if err := w.pipe.failed(ctx); err != nil {
		return err
	}
	w.pipe.submit(w.cur)
	w.cur = nil
	return nil
}
