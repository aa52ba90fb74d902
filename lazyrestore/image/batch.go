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
	number uint64 // of those that were submitted
	pieces []piece
	plain  int                  // bytes in pieces
	own    []byte               // memory of pieces that were copied or read; pieces of it stay valid as it never grows
	read   func(p []byte) error // gets all of plain into own; nil where it is there
	calls  []*call

	// Made by the worker.
	out    []byte     // the frames, unless they are parts of pieces
	parts  [][]byte   // the frames' bytes in order
	frames []outFrame // one for each frame
	runs   []Run      // of all frames; Frame is not set yet
	zero   uint64     // bytes of zero pages
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

// follows checks that a run of n bytes at an address may come next, and counts it.
func (w *Writer) follows(at page.Addr, n uint64) error {
	end := at + page.Addr(n)
	switch {
	case w.done:
		return errWriterDone
	case !at.Aligned() || n%page.Size != 0:
		return fmt.Errorf("write %d bytes at %s: %w", n, at, errUnaligned)
	case at < w.next || end < at:
		return fmt.Errorf("write %d bytes at %s, after memory up to %s: %w", n, at, w.next, errOrder)
	}
	w.next = end
	w.pipe.memory.Add(n)
	return nil
}

func (w *Writer) writeRun(ctx context.Context, at page.Addr, p []byte, c *call) error {
	if err := w.follows(at, uint64(len(p))); err != nil {
		return err
	}
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

// WriteRuns is WriteRun for several runs that are still to be read: read fills p
// with all of them, one after the other. It is called at most once, by a
// goroutine that compresses and writes them next, while p is in its cache, and
// so maybe several at once of several calls; Settle waits for them. The runs are
// of BatchSize bytes at most in all. Where they end and the next begin is to be a
// multiple of the chunk size, else there are more and smaller chunks.
func (w *Writer) WriteRuns(ctx context.Context, runs []page.Range, read func(p []byte) error) error {
	err := w.writeRuns(ctx, runs, read)
	if err != nil && !w.done {
		w.pipe.fail(err)
	}
	return err
}

func (w *Writer) writeRuns(ctx context.Context, runs []page.Range, read func(p []byte) error) error {
	if err := w.submitCur(ctx); err != nil {
		return err
	}
	b, err := w.pipe.get(ctx)
	if err != nil {
		return err
	}
	b.room(w.pipe.batch)
	for _, r := range runs {
		if err := w.follows(r.Start, r.Len()); err != nil {
			return err
		}
		n := int(r.Len())
		if n > len(b.own)-b.plain {
			return fmt.Errorf("write %d bytes at %s: %w", n, r.Start, errTooMuch)
		}
		b.pieces = append(b.pieces, piece{r.Start, b.own[b.plain : b.plain+n]})
		b.plain += n
	}
	b.read = read
	w.pipe.submit(b)
	return nil
}

// BatchSize is how many bytes WriteRuns takes: one chunk or more.
func (w *Writer) BatchSize() int { return w.pipe.batch }

// ChunkSize is the length of the image's chunks in bytes.
func (w *Writer) ChunkSize() int { return w.opts.ChunkSize }

// Settle waits until no read that was given to WriteRuns is called any more, and
// gives the first error so far.
func (w *Writer) Settle(ctx context.Context) error {
	w.pipe.reads.Wait()
	return w.pipe.failed(ctx)
}

// room sees to it that the batch has memory of its own.
func (b *batch) room(n int) {
	if b.own == nil {
		b.own = make([]byte, n)
	}
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
			b.room(w.pipe.batch)
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
