package pageserver

import (
	"sync"

	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

const (
	// piece is how many bytes of a long reply are sent before others have
	// their turn.
	piece = 256 << 10

	// copyMax is up to where bytes are copied, for that is cheaper than to
	// have the kernel send them from the file.
	copyMax = 32 << 10

	// headRoom is what stands before the payload of a DATA.
	headRoom = wire.HeaderSize + wire.DataSize
)

// buffers are for payload that is copied.
var buffers = sync.Pool{New: func() any { return new([headRoom + copyMax]byte) }}

// answerNow answers a short demand read whose bytes are in memory. If they are
// not it reports false, and has done nothing.
func (c *conn) answerNow(r *request) bool {
	buf := buffers.Get().(*[headRoom + copyMax]byte)
	defer buffers.Put(buf)
	n := int(r.end - r.off)
	if !r.object.unchanged() || !r.object.readNow(buf[headRoom:headRoom+n], r.off) {
		return false
	}
	head := wire.AppendData(buf[:0], r.id, wire.FlagLast, wire.Data{Offset: r.off, Size: r.object.stamp.size, Length: n})
	err := c.send(buf[:len(head)+n])
	c.server.count(r.lane, n)
	c.finish(r, err)
	return true
}

// stream answers a read in pieces.
func (c *conn) stream(r *request) error {
	for {
		n := int(min(piece, r.end-r.off))
		switch {
		case r.cancelled.Load():
			return failure(wire.CodeCancelled, "")
		case !r.object.unchanged():
			return failure(wire.CodeChanged, "image %s has been written to", r.image.name)
		}
		if err := r.object.fetch(r.off, int64(n)); err != nil {
			return failure(wire.CodeFailed, "image %s: %v", r.image.name, err)
		}
		last := r.off+int64(n) == r.end
		if err := c.sendPiece(r, n, last); err != nil {
			return err
		}
		c.server.count(r.lane, n)
		if r.off += int64(n); last {
			return nil
		}
	}
}

// sendPiece sends one DATA, when it is its turn.
func (c *conn) sendPiece(r *request, n int, last bool) error {
	flags := uint8(0)
	if last {
		flags = wire.FlagLast
	}
	var room [headRoom]byte
	head := wire.AppendData(room[:0], r.id, flags, wire.Data{Offset: r.off, Size: r.object.stamp.size, Length: n})
	parked := c.enter(r.lane)
	defer c.out.give()
	defer parked()
	return c.ship(head, r.object, r.off, n, parked)
}

// enter waits until a piece may be sent. The function that it returns gives
// its turn back, with the first call, and is also called as soon as
// the client's socket is full: a slow client keeps no turn from others.
func (c *conn) enter(lane Lane) (parked func()) {
	if lane == LaneDemand {
		c.out.take()
		return func() {}
	}
	for {
		c.server.turns.take(&c.client.waiters)
		if c.out.try() {
			break
		}
		c.server.turns.give()
		c.out.await()
	}
	given := false
	return func() {
		if !given {
			given = true
			c.server.turns.give()
		}
	}
}

// ship sends a message of which n bytes are in a file. The caller has the
// outlet.
func (c *conn) ship(head []byte, o *object, off int64, n int, parked func()) error {
	if c.raw != nil && n > 0 {
		return c.sendFile(head, o, off, n, parked)
	}
	buf := buffers.Get().(*[headRoom + copyMax]byte)
	defer buffers.Put(buf)
	for at := copy(buf[:], head); ; at = 0 {
		k := min(n, len(buf)-at)
		if err := o.read(buf[at:at+k], off); err != nil {
			if at > 0 { // the client has been promised nothing yet
				err = failure(wire.CodeFailed, "%v", err)
			}
			return err
		}
		parked() // whether the client takes it is not known
		if err := c.write(buf[:at+k]); err != nil {
			return err
		}
		if off, n = off+int64(k), n-k; n == 0 {
			return nil
		}
	}
}
