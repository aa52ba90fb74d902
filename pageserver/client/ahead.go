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
	// reader has to wait: 8 MiB are a GiB/s over a round trip of 8 ms.
	firstWindow = 256 << 10
	lastWindow  = 8 << 20
	// Blocks are what is asked for at a time: joined out of many small reads.
	smallBlock = 128 << 10
	largeBlock = wire.MinRead
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
	waited bool // for a block, since the window has last grown
}

// read fills p, and has what follows fetched.
func (a *ahead) read(ctx context.Context, c *Client, object string, p []byte, off int64) error {
	s, wants := a.cover(c, object, p, off)
	if len(wants) == 0 {
		return c.fetch(ctx, image.Background, object, p, off)
	}
	l := c.lanes[image.Background]
	var failed error
	origins := make([]origin, 0, len(wants))
	for _, w := range wants {
		slept := false
		if failed == nil {
			if slept, failed = l.await(ctx, w.req, w.done); failed != nil && closed(w.req.done) {
				a.drop(object, w.req.off, int64(w.req.size))
			}
		}
		switch {
		case failed != nil:
			a.withdraw(l, w)
		case w.from < w.direct:
			copy(w.p, w.kept[w.from:w.direct])
		}
		origins = append(origins, a.used(s, w, slept))
	}
	if failed == nil {
		c.reject.noteAll(origins)
	}
	return failed
}

// withdraw has w no longer received to its memory.
func (a *ahead) withdraw(l *lane, w *want) {
	for {
		a.mu.Lock()
		done := w.withdraw()
		a.mu.Unlock()
		if done {
			return
		}
		l.cut(w.req)
	}
}

// cover is the parts of blocks that p is put together of, and their stream; none
// where some of it has come and was not kept, or somebody else waits for it. What is
// not on its way is asked for, and if the reading goes on where the last one ended
// some more.
func (a *ahead) cover(c *Client, object string, p []byte, off int64) (*stream, []*want) {
	size := c.sizes[object]
	end := off + int64(len(p))
	a.mu.Lock()
	s := a.find(object, off)
	switch {
	case s == nil:
		s = a.begin(object, off)
	case s.window == 0:
		s.window = firstWindow
	case s.waited:
		s.window = min(2*s.window, lastWindow)
	}
	s.waited = false
	part := min(max(smallBlock, s.window/8), largeBlock)
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
		b := newBlock(object, s.end, int(m), a)
		s.blocks = append(s.blocks, b)
		s.end += m
		ask = append(ask, b.req)
	}
	wants := s.want(p, off)
	a.mu.Unlock()
	if len(ask) > 0 {
		c.lanes[image.Background].send(ask...)
	}
	return s, wants
}

// want has p received, from all blocks that hold some of it, or from none where one
// cannot give it. The caller holds mu.
func (s *stream) want(p []byte, off int64) []*want {
	end := off + int64(len(p))
	part := func(b *block) span {
		return span{int(max(off-b.req.off, 0)), int(min(end-b.req.off, int64(b.req.size)))}
	}
	var wants []*want
	for _, b := range s.blocks {
		if sp := part(b); sp.from < sp.to && !b.free(sp) {
			return nil
		}
	}
	for _, b := range s.blocks {
		if sp := part(b); sp.from < sp.to {
			wants = append(wants, b.want(sp, p[b.req.off+int64(sp.from)-off:][:sp.to-sp.from]))
		}
	}
	return wants
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

// used counts the bytes of w, which were handed out, and lets go
// of blocks at the stream's front. The last one stays: the stream goes on
// behind it.
func (a *ahead) used(s *stream, w *want, slept bool) origin {
	a.mu.Lock()
	defer a.mu.Unlock()
	w.read += w.to - w.from
	w.users--
	s.waited = s.waited || slept
	s.at = max(s.at, w.req.off+int64(w.to))
	for len(s.blocks) > 1 && (s.blocks[0].read >= s.blocks[0].req.size || s.blocks[0].end() < s.at-lag) {
		s.blocks[0].gone = true
		a.recycle(s.blocks[0])
		s.blocks = s.blocks[1:]
	}
	a.recycle(w.block)
	return w.origin(w.span)
}

// recycle has the memory of a block used again, if nobody looks at it any
// more. The caller holds mu.
func (a *ahead) recycle(b *block) {
	if b.gone && b.users == 0 && b.req.finished() && b.kept != nil {
		a.buffers.put(b.kept)
		b.kept, b.has = nil, nil
	}
}

// now fills p if all of it was read ahead, and kept.
func (a *ahead) now(c *Client, object string, p []byte, off int64) bool {
	end := off + int64(len(p))
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.streams {
		if s.object != object || len(s.blocks) == 0 || off < s.blocks[0].req.off || end > s.end {
			continue
		}
		var origins []origin
		for _, b := range s.blocks {
			sp := span{int(max(off-b.req.off, 0)), int(min(end-b.req.off, int64(b.req.size)))}
			if sp.from >= sp.to {
				continue
			}
			if !b.holds(sp) {
				return false
			}
			copy(p[b.req.off+int64(sp.from)-off:], b.kept[sp.from:sp.to])
			origins = append(origins, b.origin(sp))
		}
		c.reject.noteAll(origins)
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
