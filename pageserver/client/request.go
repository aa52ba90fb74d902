package client

import (
	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// A request is a range of an object on its way. It belongs to a lane, whose mu
// guards it, until done is closed; the payload is written by the reader of the
// connection that it is on.
type request struct {
	object string
	off    int64  // of the range
	size   int    // of the range; of a short one 0 until it is known
	p      []byte // the range; of a short one nil until some of it comes, of a block's always
	into   *block // whose payload it is, if not p's
	n      int    // bytes of it that have come
	more   int    // bytes of a payload that have come besides, and will come again if its end does not
	short  bool   // the object may end first; then p is cut
	ping   bool   // no range at all

	on     *conn  // the connection that it was sent on; nil while it waits
	had    int    // bytes that had come when it was sent
	lost   int    // connections lost in a row without one more byte
	id     uint32 // on its connection
	server *server
	done   chan struct{}
	err    error // once done is closed
}

func newRequest(object string, off int64, p []byte) *request {
	return &request{object: object, off: off, size: len(p), p: p, done: make(chan struct{})}
}

// newBlock asks for n bytes that are read ahead.
func newBlock(object string, off int64, n int, a *ahead) *block {
	b := &block{ahead: a}
	b.req = &request{object: object, off: off, size: n, into: b, done: make(chan struct{})}
	return b
}

// newShort asks for up to wire.MinRead bytes.
func newShort(object string, off int64) *request {
	return &request{object: object, off: off, short: true, done: make(chan struct{})}
}

// finished reports whether the request is done, and well.
func (r *request) finished() bool {
	select {
	case <-r.done:
		return r.err == nil
	default:
		return false
	}
}

// append appends the request for what has not come yet.
func (r *request) append(dst []byte, image uint32, background bool) []byte {
	if r.ping {
		return wire.AppendPing(dst, r.id)
	}
	read := wire.Read{Image: image, Object: r.object, Offset: r.off + int64(r.n), Length: uint32(r.size - r.n)}
	var flags uint8
	if background {
		flags |= wire.FlagBackground
	}
	if r.short && r.p == nil {
		read.Length = wire.MinRead
	}
	if r.short {
		flags |= wire.FlagShort
	}
	return read.Append(dst, r.id, flags)
}

// accepts reports whether the payload that a DATA announces belongs to this request.
func (r *request) accepts(d wire.Data) bool {
	if d.Offset != r.off+int64(r.n) {
		// Beyond the end of its object a short read finds nothing, anywhere.
		return r.short && d.Length == 0
	}
	if r.short && r.p == nil {
		r.size = int(max(0, min(wire.MinRead, d.Size-r.off)))
	}
	if d.Length > r.size-r.n {
		return false
	}
	if r.p == nil && r.into == nil {
		r.p = make([]byte, r.size)
	}
	return true
}

// next is where the next bytes belong, at most n. came has to follow.
func (r *request) next(n int) []byte {
	if r.into != nil {
		return r.into.next(n)
	}
	return r.p[r.n+r.more:][:n]
}

// came notes that n bytes have been received to what next gave, and whether they
// are the last of a payload.
func (r *request) came(n int, last bool) {
	if r.into != nil {
		r.into.came(n)
	}
	if r.more += n; r.more >= slice || last || r.into != nil {
		r.n, r.more = r.n+r.more, 0
	}
}
