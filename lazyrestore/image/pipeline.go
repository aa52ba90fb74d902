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
//	get ─▶ (Writer fills) ─▶ submit ─▶ work: any worker encodes ─▶ order: one goroutine writes ─▶ free
//
// A batch is in order before it is in work, so that the writing goroutine
// waits for the oldest one. There are as many batches as the channels hold:
// only get blocks.
type pipeline struct {
	w     *Writer
	batch int // plain bytes that a batch holds at most
	free  chan *batch
	work  chan *batch
	order chan *batch
	wg    sync.WaitGroup
	seek  chunk.SeekTable // of the writing goroutine, and of Finish after it

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
		free: make(chan *batch, n), work: make(chan *batch, n), order: make(chan *batch, n),
	}
	for range n {
		p.free <- &batch{ready: make(chan struct{}, 1)}
	}
	for range w.opts.Workers {
		p.wg.Go(p.encode)
	}
	p.wg.Go(p.write)
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
	p.order <- b
	p.work <- b
}

// close waits until all that was submitted is written, and gives the first
// error.
func (p *pipeline) close() error {
	close(p.work)
	close(p.order)
	p.wg.Wait()
	return p.failed(context.Background())
}

func (p *pipeline) stats() Stats {
	return Stats{
		MemoryBytes: p.memory.Load(), ZeroBytes: p.zero.Load(), LazyBytes: p.lazy.Load(),
		StoredBytes: p.stored.Load(), Frames: p.frames.Load(), Runs: p.runs.Load(),
	}
}

// encode is a worker.
func (p *pipeline) encode() {
	enc, err := chunk.NewEncoder(p.w.opts.Spec)
	if err != nil {
		p.fail(err)
	}
	e := encoder{enc: enc, codec: p.w.codec, window: p.w.opts.ChunkSize}
	for b := range p.work {
		if p.failed(context.Background()) == nil {
			e.encode(b)
		}
		if e.codec != chunk.None {
			b.unref() // the frames have the data now
		}
		b.ready <- struct{}{}
	}
}

// write is the writing goroutine.
func (p *pipeline) write() {
	for b := range p.order {
		<-b.ready
		if p.failed(context.Background()) == nil {
			if err := p.writeBatch(b); err != nil {
				p.fail(err)
			}
		}
		b.unref()
		b.reset()
		p.free <- b
	}
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
	b.out, b.plain, b.zero = b.out[:0], 0, 0
}
