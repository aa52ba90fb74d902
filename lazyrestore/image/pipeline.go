package image

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
)

// A pipeline takes batches from the Writer to its objects:
//
//	get ─▶ (Writer fills) ─▶ submit ─▶ work: any worker reads and encodes ─▶ whose turn it is, writes ─▶ free
//
// A worker does all of it, so that what it reads, encodes, sums and writes stays
// in its processor's cache, and nobody has to be woken for the next step. Batches
// are written in order, by one worker at a time: it goes on with all that
// others have encoded meanwhile, while they encode the next. There are as many
// batches as the channels hold: only get blocks.
type pipeline struct {
	w     *Writer
	batch int // plain bytes that a batch holds at most
	free  chan *batch
	work  chan *batch
	wg    sync.WaitGroup
	reads sync.WaitGroup  // batches that are still to be read
	sent  uint64          // batches that were submitted; the Writer's
	seek  chunk.SeekTable // of the worker that writes, and of Finish after it

	mu      sync.Mutex
	encoded []*batch // under mu: those that wait to be written, by number, modulo its length
	written uint64   // under mu: batches
	writing bool     // under mu: somebody writes

	memory, zero, lazy, stored, frames, runs atomic.Uint64

	broken chan struct{} // closed with the first error
	once   sync.Once
	err    error // set before broken is closed
}

// newPipeline starts the goroutines; close ends them.
func newPipeline(w *Writer) *pipeline {
	n := w.opts.Workers + 2
	size := max(min(batchSize, batchesSize/n)/w.opts.ChunkSize, 1) * w.opts.ChunkSize
	p := &pipeline{
		w: w, batch: size, broken: make(chan struct{}),
		free: make(chan *batch, n), work: make(chan *batch, n), encoded: make([]*batch, n),
	}
	for range n {
		p.free <- new(batch)
	}
	for range w.opts.Workers {
		p.wg.Go(p.worker)
	}
	return p
}

// fail notes the first error.
func (p *pipeline) fail(err error) {
	p.once.Do(func() {
		p.err = err
		close(p.broken)
	})
}

// failed is the first error, or ctx's.
func (p *pipeline) failed(ctx context.Context) error {
	select {
	case <-p.broken:
		return p.err
	default:
		return context.Cause(ctx)
	}
}

// get waits for an empty batch.
func (p *pipeline) get(ctx context.Context) (*batch, error) {
	if err := p.failed(ctx); err != nil {
		return nil, err
	}
	select {
	case b := <-p.free:
		return b, nil
	case <-p.broken:
		return nil, p.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// submit sends a batch on its way.
func (p *pipeline) submit(b *batch) {
	b.number = p.sent
	p.sent++
	if b.read != nil {
		p.reads.Add(1)
	}
	p.work <- b
}

// close waits until all that was submitted is written, and gives the first
// error.
func (p *pipeline) close() error {
	close(p.work)
	p.wg.Wait()
	return p.failed(context.Background())
}

func (p *pipeline) stats() Stats {
	return Stats{
		MemoryBytes: p.memory.Load(), ZeroBytes: p.zero.Load(), LazyBytes: p.lazy.Load(),
		StoredBytes: p.stored.Load(), Frames: p.frames.Load(), Runs: p.runs.Load(),
	}
}

func (p *pipeline) worker() {
	enc, err := chunk.NewEncoder(p.w.opts.Spec)
	if err != nil {
		p.fail(err)
	}
	e := encoder{enc: enc, codec: p.w.codec, window: p.w.opts.ChunkSize}
	for b := range p.work {
		p.encode(&e, b)
		p.turn(b)
	}
}

// encode reads a batch, if need be, and makes its frames.
func (p *pipeline) encode(e *encoder, b *batch) {
	ok := p.failed(context.Background()) == nil
	if b.read != nil {
		if ok {
			if err := b.read(b.own[:b.plain]); err != nil {
				p.fail(err)
				ok = false
			}
		}
		p.reads.Done()
	}
	if ok {
		e.encode(b)
	}
	if e.codec != chunk.None {
		b.unref() // the frames have the data now
	}
}

// turn has a batch written: at once, where it is the next and nobody writes, or
// else by whom it waits for.
func (p *pipeline) turn(b *batch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := uint64(len(p.encoded))
	p.encoded[b.number%n] = b
	if p.writing {
		return
	}
	p.writing = true
	for {
		next := p.encoded[p.written%n]
		if next == nil {
			break
		}
		p.encoded[p.written%n] = nil
		p.written++
		p.mu.Unlock()
		p.write(next)
		p.mu.Lock()
	}
	p.writing = false
}

// write writes a batch, which is free then.
func (p *pipeline) write(b *batch) {
	if p.failed(context.Background()) == nil {
		if err := p.writeBatch(b); err != nil {
			p.fail(err)
		}
	}
	b.unref()
	b.reset()
	p.free <- b
}

func (p *pipeline) writeBatch(b *batch) error {
	for _, part := range b.parts {
		if _, err := p.w.pages.Write(part); err != nil {
			return err
		}
	}
	runs := b.runs
	for i := range b.frames {
		f := &b.frames[i]
		if p.w.codec == chunk.Zstd {
			if p.seek.Frames() >= chunk.SeekMaxFrames {
				return fmt.Errorf("%d zstd frames in one image: choose larger chunks than %d bytes", chunk.SeekMaxFrames, p.w.opts.ChunkSize)
			}
			p.seek.Add(uint32(f.Stored), uint32(f.Plain))
		}
		if err := p.w.idx.add(f.Frame, f.digest, runs[:f.runs]); err != nil {
			return err
		}
		runs = runs[f.runs:]
		p.lazy.Add(uint64(f.Plain))
		p.stored.Add(uint64(f.Stored))
	}
	p.zero.Add(b.zero)
	p.frames.Add(uint64(len(b.frames)))
	p.runs.Add(uint64(len(b.runs)))
	return nil
}

// unref gives the callers their memory back; a second call does nothing.
func (b *batch) unref() {
	for i, c := range b.calls {
		c.unref()
		b.calls[i] = nil
	}
	b.calls = b.calls[:0]
}

// reset makes the batch empty; its buffers stay.
func (b *batch) reset() {
	clear(b.pieces) // they point into callers' memory
	clear(b.parts)
	b.pieces, b.parts, b.frames, b.runs = b.pieces[:0], b.parts[:0], b.frames[:0], b.runs[:0]
	b.out, b.plain, b.zero, b.read = b.out[:0], 0, 0, nil
}
