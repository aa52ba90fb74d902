package client

import "slices"

// A block is one request of a stream. What of it somebody waits for when it comes
// is received where he wants it to be; what comes before anybody does, to memory of
// the block's own. What a block is, ahead.mu guards, but for req.
type block struct {
	req   *request
	ahead *ahead

	got   int     // bytes that have come
	giver *server // that gave the latest
	room  int     // end of the room that is being received to; got if nothing is
	taker *want   // whose that room is; nil for the block's own
	wants []*want
	kept  []byte // memory for the whole block; nil until there is something to keep
	has   []span // what is in it, in order

	read  int  // bytes handed out
	users int  // who wait for it or copy from it
	gone  bool // it is in no stream
}

// A span is bytes of a block.
type span struct{ from, to int }

// A want is a part of a block that somebody waits for. What of it has come before
// he came is in kept: up to direct, from where on it is received to p.
type want struct {
	*block
	span
	direct int
	p      []byte        // all of it
	done   chan struct{} // closed when all of it has come
}

func (b *block) end() int64 { return b.req.off + int64(b.req.size) }

// origin is where s of what has come is from. The caller holds mu.
func (b *block) origin(s span) origin {
	return origin{b.req.object, b.req.off + int64(s.from), s.to - s.from, b.giver}
}

// holds reports whether s has come and was kept. The caller holds mu.
func (b *block) holds(s span) bool {
	return slices.ContainsFunc(b.has, func(h span) bool { return h.from <= s.from && s.to <= h.to })
}

// free reports whether s can be wanted: what has come of it, or is about to, is kept,
// and nobody else wants it. The caller holds mu.
func (b *block) free(s span) bool {
	if s.from < b.got && !b.holds(span{s.from, min(s.to, b.got)}) || b.taker != nil && s.from < b.room && b.got < s.to {
		return false
	}
	return !slices.ContainsFunc(b.wants, func(w *want) bool { return w.direct < s.to && s.from < w.to })
}

// want has s received to p, as far as it has not come. The caller holds mu.
func (b *block) want(s span, p []byte) *want {
	w := &want{block: b, span: s, direct: min(max(s.from, b.room), s.to), p: p}
	b.users++
	if s.to > b.got {
		w.done = make(chan struct{})
		b.wants = append(b.wants, w)
	}
	return w
}

// next is where the next bytes are to be received to, at most n. came has to follow.
func (b *block) next(n int) []byte {
	b.ahead.mu.Lock()
	defer b.ahead.mu.Unlock()
	n = min(n, b.req.size-b.got)
	for _, w := range b.wants {
		switch {
		case b.got < w.direct:
			n = min(n, w.direct-b.got)
		case b.got < w.to:
			n = min(n, w.to-b.got)
			b.room, b.taker = b.got+n, w
			return w.p[b.got-w.from:][:n]
		}
	}
	if b.kept == nil {
		b.kept = b.ahead.buffers.get(b.req.size)
	}
	b.room = b.got + n
	return b.kept[b.got:b.room]
}

// came notes that n bytes have been received to what next gave.
func (b *block) came(n int) {
	b.ahead.mu.Lock()
	defer b.ahead.mu.Unlock()
	if k := len(b.has) - 1; b.taker == nil && n > 0 {
		if k >= 0 && b.has[k].to == b.got {
			b.has[k].to += n
		} else {
			b.has = append(b.has, span{b.got, b.got + n})
		}
	}
	if n > 0 {
		b.giver = b.req.server
	}
	b.got += n
	b.room, b.taker = b.got, nil
	b.wants = slices.DeleteFunc(b.wants, func(w *want) bool {
		if w.to > b.got {
			return false
		}
		close(w.done)
		return true
	})
}

// withdraw has w no longer received, and reports false where some of it is at
// this moment. The caller holds mu.
func (w *want) withdraw() bool {
	if w.to > w.got && w.taker == w {
		return false
	}
	if i := slices.Index(w.wants, w); i >= 0 {
		w.wants = slices.Delete(w.wants, i, i+1)
	}
	return true
}
