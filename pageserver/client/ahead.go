package client

import (
	"context"
	"slices"
	"sync"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

const (
	// mostStreams is how many places are read on from at once.
	mostStreams = 3
	// Window is how far a stream is ahead of its reader. It doubles while the
	// reader has to wait, beyond nearWindow only on a line that holds more: 8 MiB
	// are a GiB/s over a round trip of 8 ms. Where the line is full, or the server
	// or this machine is what is slow, more is only memory, taken page by page: of a
	// restore of 64 MiB from a server beside it, with blocks twice as large, that was an eighth of its time.
	firstWindow = 256 << 10
	nearWindow  = 3 << 20
	lastWindow  = 8 << 20
	// Blocks are what is asked for at a time: joined out of many small reads. Each
	// costs the waking of several threads, of the server's and of this process's.
	smallBlock = 128 << 10
	largeBlock = 1 << 20
	// lag is how far behind the reader a block is kept that was not all read:
	// some of it somebody else has brought.
	lag = 1 << 20
)

// ahead reads on where the background reads: on a long link the bytes are
// there, or on their way, when they are asked for, and many small reads are a
// few large ones.
type ahead struct {
	buffers buffers

	mu      sync.Mutex
	streams []*stream // guarded by mu: the latest first
}

// A stream is a part of an object that is being read in order. What it is,
// ahead.mu guards.
type stream struct {
	object string
	blocks []*block // adjacent, in order
	end    int64    // where they end
	at     int64    // where the latest reading ended
	window int64
	tried  int64 // where the first ask for all of the window ended
	grow   bool  // the window is too small: the reader had to wait for a block, since it has last grown
}

// A block is one request of a stream.
type block struct {
	req   *request
	read  int  // bytes handed out
	users int  // who wait for it or copy from it
	gone  bool // it is in no stream
}

func (b *block) end() int64 { return b.req.off + int64(b.req.size) }

// read fills p, and has what follows fetched.
func (a *ahead) read(ctx context.Context, c *Client, object string, p []byte, off int64) error {
	s, blocks := a.cover(c, object, off, len(p))
	for _, b := range blocks {
		waited := !b.req.finished()
		select {
		case <-b.req.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if b.req.err != nil {
			a.drop(object, b.req.off, int64(b.req.size))
			return b.req.err
		}
		from, to := max(off, b.req.off), min(off+int64(len(p)), b.end())
		copy(p[from-off:to-off], b.req.p[from-b.req.off:])
		a.used(s, b, to, int(to-from), waited)
	}
	c.reject.noteAll(blocks)
	return nil
}

// cover is the blocks that hold the range, and their stream. What is not on
// its way is asked for, and if the reading goes on where the last one ended
// some more.
func (a *ahead) cover(c *Client, object string, off int64, n int) (*stream, []*block) {
	size := c.sizes[object]
	end := off + int64(n)
	a.mu.Lock()
	s := a.find(object, off)
	switch {
	case s == nil:
		s = a.begin(object, off)
	case s.window == 0:
		s.window = firstWindow
	case s.grow:
		s.window = larger(s.window)
		s.tried = min(end+s.window, size)
	}
	s.grow = false
	part := min(max(smallBlock, s.window/2), largeBlock)
	var ask []*request
	for want := min(end+s.window, size); s.end < want; {
		// Beyond what is needed now whole blocks are asked for.
		if s.end >= end && want-s.end < part && want < size {
			break
		}
		m := min(part, size-s.end)
		if s.window == 0 {
			m = min(end-s.end, wire.MinRead)
		}
		r := newLent(object, s.end, int(m), &a.buffers)
		s.blocks = append(s.blocks, &block{req: r})
		s.end += m
		ask = append(ask, r)
	}
	var blocks []*block
	for _, b := range s.blocks {
		if b.req.off < end && off < b.end() {
			b.users++
			blocks = append(blocks, b)
		}
	}
	a.mu.Unlock()
	if len(ask) > 0 {
		c.lanes[image.Background].send(ask...)
	}
	return s, blocks
}

// larger is the window that follows one of n bytes.
func larger(n int64) int64 {
	if n < nearWindow {
		return min(2*n, nearWindow)
	}
	return min(2*n, lastWindow)
}

// find is the stream that holds off or ends there, which becomes the first.
// The caller holds mu.
func (a *ahead) find(object string, off int64) *stream {
	for i, s := range a.streams {
		if s.object == object && off <= s.end && len(s.blocks) > 0 && off >= s.blocks[0].req.off {
			copy(a.streams[1:i+1], a.streams[:i])
			a.streams[0] = s
			return s
		}
	}
	return nil
}

// begin is a new stream in place of the one that was not read for longest.
// The caller holds mu.
func (a *ahead) begin(object string, off int64) *stream {
	s := &stream{object: object, end: off}
	a.streams = slices.Insert(a.streams[:min(len(a.streams), mostStreams-1)], 0, s)
	return s
}

// used counts n bytes of b that were handed out, up to offset at, and lets go
// of blocks at the stream's front. The last one stays: the stream goes on
// behind it.
func (a *ahead) used(s *stream, b *block, at int64, n int, waited bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	b.read += n
	b.users--
	if waited && (s.window < nearWindow || b.end() >= s.tried && !b.req.full) {
		s.grow = true
	}
	s.at = max(s.at, at)
	for len(s.blocks) > 1 && (s.blocks[0].read >= s.blocks[0].req.size || s.blocks[0].end() < s.at-lag) {
		s.blocks[0].gone = true
		a.recycle(s.blocks[0])
		s.blocks = s.blocks[1:]
	}
	a.recycle(b)
}

// recycle has the memory of a block used again, if nobody looks at it any
// more. The caller holds mu.
func (a *ahead) recycle(b *block) {
	if b.gone && b.users == 0 && b.req.finished() && b.req.p != nil {
		a.buffers.put(b.req.p)
		b.req.p = nil
	}
}

// now fills p if all of it was read ahead.
func (a *ahead) now(c *Client, object string, p []byte, off int64) bool {
	end := off + int64(len(p))
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.streams {
		if s.object != object || len(s.blocks) == 0 || off < s.blocks[0].req.off || end > s.end {
			continue
		}
		var blocks []*block
		for _, b := range s.blocks {
			if b.req.off < end && off < b.end() {
				if !b.req.finished() {
					return false
				}
				blocks = append(blocks, b)
			}
		}
		for _, b := range blocks {
			from, to := max(off, b.req.off), min(end, b.end())
			copy(p[from-off:to-off], b.req.p[from-b.req.off:])
		}
		c.reject.noteAll(blocks)
		return true
	}
	return false
}

// drop lets go of the streams that hold some of the range.
func (a *ahead) drop(object string, off, n int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.streams = slices.DeleteFunc(a.streams, func(s *stream) bool {
		return s.object == object && len(s.blocks) > 0 && s.blocks[0].req.off < off+n && off < s.end
	})
}
