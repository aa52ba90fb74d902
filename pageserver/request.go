package pageserver

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// A request is a READ or a LIST in flight.
type request struct {
	id        uint32
	lane      Lane
	begin     time.Time
	image     *opened // nil of a LIST
	after     string  // of a LIST: images behind this name
	object    *object
	off, end  int64 // what is still to be sent
	cancelled atomic.Bool
}

// read answers a READ, or has it answered. An error ends the connection.
func (c *conn) read(m wire.Message) error {
	w, err := wire.ParseRead(m.Body)
	if err != nil {
		return err
	}
	r := &request{id: m.ID, begin: time.Now()}
	if m.Flags&wire.FlagBackground != 0 {
		r.lane = LaneBackground
	} else {
		c.expectDemand()
	}
	if e := c.find(r, &w, m.Flags); e != nil {
		return c.answerError(m.ID, e)
	}
	if ok, err := c.register(r); !ok {
		return err
	}
	switch {
	case r.lane == LaneBackground:
	case r.end-r.off <= copyMax:
		if c.answerNow(r) {
			return nil
		}
		fallthrough
	default:
		c.answers.Go(func() { c.finish(r, c.stream(r)) })
	}
	return nil
}

// find says what a READ is about.
func (c *conn) find(r *request, w *wire.Read, flags uint8) *wire.Error {
	if w.Length > c.server.opts.Limits.Read {
		return failure(wire.CodeLimit, "%d bytes in one read, at most %d are allowed", w.Length, c.server.opts.Limits.Read)
	}
	r.image = c.images[w.Image]
	if r.image == nil {
		return failure(wire.CodeNoImage, "no image is open as %d", w.Image)
	}
	r.object = r.image.objects[w.Object]
	if r.object == nil {
		return failure(wire.CodeNoObject, "image %s has no object %q", r.image.name, w.Object)
	}
	size := r.object.stamp.size
	r.off = w.Offset
	if flags&wire.FlagFromEnd != 0 {
		r.off = size - min(w.Offset, size)
	}
	if flags&wire.FlagShort != 0 {
		r.off = min(r.off, size)
	}
	r.end = min(r.off, size) + min(int64(w.Length), size-min(r.off, size))
	if flags&wire.FlagShort == 0 && (r.off > size || r.end-r.off < int64(w.Length)) {
		return failure(wire.CodeRange, "%d bytes at %d of %s, which has %d", w.Length, r.off, w.Object, size)
	}
	return nil
}

func failure(code wire.Code, format string, args ...any) *wire.Error {
	return &wire.Error{Code: code, Text: fmt.Sprintf(format, args...)}
}

// register puts a request in flight, when there is room for it. If it does not,
// the request has been answered, or the error ends the connection.
func (c *conn) register(r *request) (ok bool, err error) {
	c.mu.Lock()
	for c.inFlight >= int(c.server.opts.Limits.Requests) && c.state != closing {
		c.room.Wait()
	}
	_, twice := c.flights[r.id]
	state := c.state
	if state == running && !twice {
		c.flights[r.id] = r
		c.inFlight++
		if r.image != nil {
			r.image.users++
		}
		if r.lane == LaneBackground {
			c.enqueue(r)
		}
	}
	c.mu.Unlock()
	switch {
	case state != running:
		return false, c.turnAway(r.id)
	case twice:
		return false, fmt.Errorf("%w: request %d is in flight already", wire.ErrMalformed, r.id)
	}
	return true, nil
}

// enqueue gives a request to the goroutine that answers background. c.mu is
// held.
func (c *conn) enqueue(r *request) {
	c.waiting = append(c.waiting, r)
	if !c.streaming {
		c.streaming = true
		c.answers.Go(c.streamWaiting)
	}
}

// streamWaiting answers background reads, and LISTs, until there is none.
func (c *conn) streamWaiting() {
	for {
		c.mu.Lock()
		if len(c.waiting) == 0 {
			c.streaming, c.waiting = false, nil
			c.mu.Unlock()
			return
		}
		r := c.waiting[0]
		c.waiting = c.waiting[1:]
		c.mu.Unlock()
		if r.image == nil {
			c.finish(r, c.sendList(r))
		} else {
			c.finish(r, c.stream(r))
		}
	}
}

// cancel marks a request, if it is in flight.
func (c *conn) cancel(id uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.flights[id]; r != nil {
		r.cancelled.Store(true)
	}
}

// retire gives the id of a request back: its last message is about to be sent,
// and the client may use the id again when it has that.
func (c *conn) retire(r *request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.flights, r.id)
}

// finish is the end of a request: it has been answered, or err says why not.
// What is no *wire.Error ends the connection.
func (c *conn) finish(r *request, err error) {
	var e *wire.Error
	switch {
	case err == nil && r.image == nil:
	case err == nil:
		c.server.observe(r.lane, time.Since(r.begin))
	case errors.As(err, &e):
		if e.Code != wire.CodeCancelled {
			c.server.log.Warn("read failed", "peer", c.nc.RemoteAddr().String(), "image", r.name(), "error", e)
		}
		c.retire(r)
		err = c.answerError(r.id, e)
	}
	if err != nil {
		c.cut(err)
	}
	c.mu.Lock()
	c.inFlight--
	c.room.Signal()
	c.mu.Unlock()
	if r.image != nil {
		c.leaveImage(r.image)
	}
	c.endIfTold()
}

func (r *request) name() string {
	if r.image == nil {
		return ""
	}
	return r.image.name
}

// list has a LIST answered, when its turn comes among what is in the background: a client
// that asks and does not take what it is told costs the memory of one list.
func (c *conn) list(m wire.Message) error {
	l, err := wire.ParseList(m.Body)
	if err != nil {
		return err
	}
	_, err = c.register(&request{id: m.ID, lane: LaneBackground, begin: time.Now(), after: l.After})
	return err
}

// sendList sends all images behind a name, in as many messages as it takes.
func (c *conn) sendList(r *request) error {
	const each = 41 + wire.MaxName // at most
	images := c.server.catalog.list(r.after)
	for {
		n := min(len(images), wire.MaxReply/each)
		flags := uint8(0)
		if n == len(images) {
			flags = wire.FlagLast
			c.retire(r)
		}
		reply := wire.Listed{Images: images[:n]}
		if err := c.send(reply.Append(nil, r.id, flags)); err != nil || flags != 0 {
			return err
		}
		if images = images[n:]; r.cancelled.Load() {
			return failure(wire.CodeCancelled, "")
		}
	}
}
