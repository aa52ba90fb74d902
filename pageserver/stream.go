package pageserver

import (
	"sync"
	"time"

	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

const (
	// piece is how many bytes of a long reply are sent before others of the
	// connection have their turn.
	piece = 512 << 10

	// turnMax is how many bytes of background are sent in one turn.
	turnMax = 2 << 20

	// copyMax is up to how many bytes a demand read is answered by copying them:
	// sooner than if the kernel sends them from the file, and with it a frame of
	// the usual size is one write (go test -bench Demand).
	copyMax = 128 << 10

	// headRoom is what stands before the payload of a DATA.
	headRoom = wire.HeaderSize + wire.DataSize
)

const (
	// shipMax is how many bytes are copied at a time where there is no other way.
	shipMax = 32 << 10

	// maxBuffers is how many long buffers are in use at once. Clients that take
	// nothing can hold one each; those that come later are served without.
	maxBuffers = (64 << 20) / copyMax
)

// Buffers for payload that is copied.
var (
	longBuffers  = sync.Pool{New: func() any { return new([headRoom + copyMax]byte) }}
	shortBuffers = sync.Pool{New: func() any { return new([headRoom + shipMax]byte) }}
)

// answerNow answers a short demand read whose bytes are in memory. If they are
// not it reports false, and has done nothing.
func (c *conn) answerNow(r *request) bool {
	defer c.server.buffers.Add(-1)
	if c.server.buffers.Add(1) > maxBuffers {
		return false
	}
	buf := longBuffers.Get().(*[headRoom + copyMax]byte)
	defer longBuffers.Put(buf)
	n := int(r.end - r.off)
	if !r.object.unchanged() || !r.object.readNow(buf[headRoom:headRoom+n], r.off) {
		return false
	}
	head := wire.AppendData(buf[:0], r.id, wire.FlagLast, wire.Data{Offset: r.off, Size: r.object.stamp.size, Length: n})
	c.retire(r)
	err := c.send(buf[:len(head)+n])
	c.lookout.answered = time.Now()
	c.server.count(r.lane, n)
	c.finish(r, err)
	return true
}

// stream answers a read in pieces.
func (c *conn) stream(r *request) error {
	for {
		switch {
		case r.cancelled.Load():
			return failure(wire.CodeCancelled, "")
		case !r.object.unchanged():
			return failure(wire.CodeChanged, "image %s has been written to", r.image.name)
		}
		if err := r.object.fetch(r.off, r.pieceSize()); err != nil {
			return failure(wire.CodeFailed, "image %s: %v", r.image.name, err)
		}
		if err := c.sendPieces(r); err != nil || r.off == r.end {
			return err
		}
	}
}

// sendPieces sends one DATA or several, when it is their turn.
func (c *conn) sendPieces(r *request) error {
	parked := c.enter(r.lane)
	defer c.out.give()
	defer parked()
	if c.raw != nil && r.off < r.end {
		return c.sendFile(r, parked)
	}
	return c.sendCopy(r, parked)
}

// pieceSize is how long a request's next piece is.
func (r *request) pieceSize() int64 { return min(piece, r.end-r.off) }

// pieceHead appends what is sent before a request's next piece, of n bytes.
func (c *conn) pieceHead(dst []byte, r *request) (head []byte, n int) {
	n = int(r.pieceSize())
	flags := uint8(0)
	if r.off+int64(n) == r.end {
		flags = wire.FlagLast
		c.retire(r)
	}
	return wire.AppendData(dst, r.id, flags, wire.Data{Offset: r.off, Size: r.object.stamp.size, Length: n}), n
}

// sent counts a piece that has been sent.
func (c *conn) sent(r *request, n int) {
	c.server.count(r.lane, n)
	r.off += int64(n)
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

// sendCopy sends a request's next piece by copying it. The caller has the
// outlet.
func (c *conn) sendCopy(r *request, parked func()) error {
	buf := shortBuffers.Get().(*[headRoom + shipMax]byte)
	defer shortBuffers.Put(buf)
	head, all := c.pieceHead(buf[:0], r)
	off, n := r.off, all
	for at := len(head); ; at = 0 {
		k := min(n, len(buf)-at)
		if err := r.object.read(buf[at:at+k], off); err != nil {
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
			c.sent(r, all)
			return nil
		}
	}
}
