package client

import (
	"context"
	"sync"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// early is what was asked for before anyone needed it: the objects that every
// restore reads first, as far as they are small. What was read is let go.
type early struct {
	mu     sync.Mutex
	pieces []*piece // guarded by mu
}

// A piece is up to wire.MinRead bytes of an object.
type piece struct {
	req  *request
	read int // bytes of it that were read by now
}

// earlyReads is how much is asked for, in reads of wire.MinRead, in the order
// in which a restore needs it. With the OPEN it has to stay below
// wire.MinRequests. The index of 6 GiB of memory is 4 MiB.
var earlyReads = []struct {
	object string
	n      int
}{
	{image.ProcessObject, 1},
	{image.EagerObject, 2},
	{image.ManifestObject, 1},
	{image.IndexObject, 4},
}

// ask queues the requests, which the first connection of the lane then sends.
func (e *early) ask(l *lane) {
	for _, o := range earlyReads {
		for i := range o.n {
			r := newShort(o.object, int64(i)*wire.MinRead)
			e.pieces = append(e.pieces, &piece{req: r})
			l.waiting = append(l.waiting, r)
		}
	}
}

// find is the piece that holds the byte at off.
func (e *early) find(object string, off int64) *piece {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, pc := range e.pieces {
		if pc.req.object == object && off >= pc.req.off && off < pc.req.off+wire.MinRead {
			return pc
		}
	}
	return nil
}

// read fills the beginning of p with what came early, or is about to, and
// returns how much that is.
func (e *early) read(ctx context.Context, c *Client, object string, p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		pc := e.find(object, off+int64(done))
		if pc == nil {
			break
		}
		select {
		case <-pc.req.done:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
		at := int(off + int64(done) - pc.req.off)
		if pc.req.err != nil || at >= len(pc.req.p) {
			e.forget(pc, wire.MinRead)
			break // asked for again, by whoever needs it
		}
		c.reject.note(pc.req)
		n := copy(p[done:], pc.req.p[at:])
		e.forget(pc, n)
		done += n
	}
	return done, nil
}

// forget lets go of a piece once all of it was read.
func (e *early) forget(pc *piece, n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if pc.read += n; pc.read < len(pc.req.p) {
		return
	}
	e.remove(func(o *piece) bool { return o == pc })
}

// drop lets go of all of an object.
func (e *early) drop(object string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.remove(func(o *piece) bool { return o.req.object == object })
}

// remove keeps the pieces that are not gone. The caller holds mu.
func (e *early) remove(gone func(*piece) bool) {
	kept := e.pieces[:0]
	for _, o := range e.pieces {
		if !gone(o) {
			kept = append(kept, o)
		}
	}
	clear(e.pieces[len(kept):])
	e.pieces = kept
}
