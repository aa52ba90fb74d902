package client

import (
	"time"

	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// A request is a range of an object on its way. It belongs to a lane, whose mu
// guards it, until done is closed; the payload is written by the reader of the
// connection that it is on.
type request struct {
	object string
	off    int64    // of the range
	size   int      // of the range; of a short one 0 until it is known
	p      []byte   // the range; of a short one, or with lend, nil until some of it comes
	lend   *buffers // where p is from, if it is not the asker's
	n      int      // bytes of it that have come
	short  bool     // the object may end first; then p is cut
	ping   bool     // no range at all

	on     *conn  // the connection that it was sent on; nil while it waits
	to     int    // where in p ends what was asked for then; the rest is when that has come
	had    int    // bytes that had come when a connection was lost that brought some
	lost   int    // connections lost in a row without one more byte
	id     uint32 // on its connection
	sent   time.Time
	full   bool // it took longer than two round trips: more at a time would not come any sooner
	server *server
	begins int      // where in p its bytes begin
	before []origin // of what is before them, others'
	done   chan struct{}
	err    error // once done is closed
}

func newRequest(object string, off int64, p []byte) *request {
	return &request{object: object, off: off, size: len(p), p: p, done: make(chan struct{})}
}

// newLent asks for n bytes, the memory for which is lent once they come: what
// is asked for far ahead takes none.
func newLent(object string, off int64, n int, lend *buffers) *request {
	return &request{object: object, off: off, size: n, lend: lend, done: make(chan struct{})}
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

// from says that s is asked for what has not come yet.
func (r *request) from(s *server) {
	if r.server == s {
		return
	}
	if r.n > r.begins {
		r.before = append(r.before, r.origin())
	}
	r.server, r.begins = s, r.n
}

// origin is that of what its server has given.
func (r *request) origin() origin {
	return origin{r.object, r.off + int64(r.begins), r.n - r.begins, r.server}
}

// append appends the request for what has not come yet.
func (r *request) append(dst []byte, image uint32, background bool) []byte {
	if r.ping {
		return wire.AppendPing(dst, r.id)
	}
	read := wire.Read{Image: image, Object: r.object, Offset: r.off + int64(r.n), Length: uint32(r.to - r.n)}
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
	if r.short && r.p == nil {
		r.size = int(max(0, min(wire.MinRead, d.Size-r.off)))
	}
	switch {
	case d.Length > r.size-r.n:
		return nil
	case r.p != nil:
	case r.lend != nil:
		r.p = r.lend.get(r.size)
	default:
		r.p = make([]byte, r.size)
	}
	return r.p[r.n : r.n+d.Length]
}
