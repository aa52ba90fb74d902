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
	p      []byte // the range; of a short one nil until its length is known
	n      int    // bytes of it that have come
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
	return &request{object: object, off: off, p: p, done: make(chan struct{})}
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
	read := wire.Read{Image: image, Object: r.object, Offset: r.off + int64(r.n), Length: uint32(len(r.p) - r.n)}
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

// room is where the payload that a DATA announces belongs; nil if it does not
// belong to this request.
func (r *request) room(d wire.Data) []byte {
	if d.Offset != r.off+int64(r.n) {
		// Beyond the end of its object a short read finds nothing, anywhere.
		if r.short && d.Length == 0 {
			return []byte{}
		}
		return nil
	}
	if r.p == nil {
		r.p = make([]byte, max(0, min(wire.MinRead, d.Size-r.off)))
	}
	if d.Length > len(r.p)-r.n {
		return nil
	}
	return r.p[r.n : r.n+d.Length]
}
