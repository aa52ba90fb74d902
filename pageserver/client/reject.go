package client

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

const (
	// keptOrigins is how many ranges are remembered with the server that gave
	// them. What is decoded at once is far less.
	keptOrigins = 512
	// Pauses before a range that every server gives damaged is asked for again.
	firstHold = 20 * time.Millisecond
	lastHold  = 10 * time.Second
	// forgetTime is after how long a range that was not found damaged again is as any other.
	forgetTime = time.Minute
)

// An origin is where a range came from.
type origin struct {
	object string
	off    int64
	n      int
	server *server
}

// rejected is what was found damaged. A range that was is asked for again at once as
// long as there is a server which has not had its chance, and then less and less often.
type rejected struct {
	mu      sync.Mutex
	origins [keptOrigins]origin // guarded by mu: a ring
	next    int                 // guarded by mu
	holds   map[string][]*hold  // guarded by mu: by object
}

// A hold is a range that was found damaged.
type hold struct {
	off    int64
	n      int64
	by     []*server // who has given it damaged, in this round of them
	rounds int       // after which no server was left
	times  int       // it was rejected
	until  time.Time // not to be asked for before
	last   time.Time // when it was rejected last
	err    error
}

// note remembers who gave the range of r, or each part of it.
func (rj *rejected) note(r *request) {
	rj.mu.Lock()
	defer rj.mu.Unlock()
	for _, o := range r.before {
		rj.add(o)
	}
	rj.add(r.origin())
}

// add appends to the ring. The caller holds mu.
func (rj *rejected) add(o origin) {
	rj.origins[rj.next] = o
	rj.next = (rj.next + 1) % keptOrigins
}

// origin is the server that gave the range last; nil if that is forgotten.
func (rj *rejected) origin(object string, off, n int64) *server {
	rj.mu.Lock()
	defer rj.mu.Unlock()
	for i := range keptOrigins {
		o := &rj.origins[(rj.next-1-i+2*keptOrigins)%keptOrigins]
		if o.server == nil {
			return nil
		}
		if o.object == object && o.off < off+n && off < o.off+int64(o.n) {
			return o.server
		}
	}
	return nil
}

// damaged notes that s, which is nil if that is forgotten, has given the range damaged.
// Where all that are up have by now, the range is held.
func (rj *rejected) damaged(object string, off, n int64, s *server, up []*server, err error) {
	rj.mu.Lock()
	defer rj.mu.Unlock()
	if rj.holds == nil {
		rj.holds = make(map[string][]*hold)
	}
	now := time.Now()
	rj.forget(now)
	var h *hold
	for _, o := range rj.holds[object] {
		if o.off == off && o.n == n {
			h = o
		}
	}
	if h == nil {
		h = &hold{off: off, n: n}
		rj.holds[object] = append(rj.holds[object], h)
	}
	h.times++
	h.last, h.err = now, err
	if s != nil && !slices.Contains(h.by, s) {
		h.by = append(h.by, s)
	}
	left := slices.ContainsFunc(up, func(o *server) bool { return !slices.Contains(h.by, o) })
	if s == nil || !left {
		h.until = now.Add(min(firstHold<<min(h.rounds, 20), lastHold))
		h.by = nil
		h.rounds++
	}
}

// forget lets go of what was damaged long ago. The caller holds mu.
func (rj *rejected) forget(now time.Time) {
	for object, holds := range rj.holds {
		holds = slices.DeleteFunc(holds, func(h *hold) bool { return now.Sub(h.last) > forgetTime })
		if rj.holds[object] = holds; len(holds) == 0 {
			delete(rj.holds, object)
		}
	}
}

// check is the error of a range that is not to be asked for now.
func (rj *rejected) check(addr Address, object string, off int64, n int) error {
	rj.mu.Lock()
	defer rj.mu.Unlock()
	if len(rj.holds) == 0 {
		return nil
	}
	for _, h := range rj.holds[object] {
		if h.off < off+int64(n) && off < h.off+h.n && time.Now().Before(h.until) {
			// Not wrapped: it is no longer one damaged frame, but a source
			// that cannot be had.
			return fmt.Errorf("%w: %s, %s at offset %d, %d times: %s", ErrDamaging, addr, object, h.off, h.times, h.err.Error())
		}
	}
	return nil
}

var errDamaging = errors.New("it gave damaged bytes")

// Reject is image.Rejecter's: the range is fetched anew, from another server
// if there is one, and the server that gave it is left. Once all that answer have given it
// damaged it cannot be had for a while, and the error is ErrDamaging.
func (c *Client) Reject(object string, off, n int64, err error) (again bool) {
	s := c.reject.origin(object, off, n)
	c.early.drop(object)
	c.ahead.drop(object, off, n)
	c.reject.damaged(object, off, n, s, c.servers.up(), err)
	if s == nil {
		return true
	}
	better := c.servers.damaging(s)
	c.opts.Logger.Warn("a page server gave damaged bytes", "server", s.String(), "object", object, "offset", off, "error", err)
	if !better {
		return true
	}
	c.prompt.busy.Lock()
	if c.prompt.server == s {
		c.prompt.close()
	}
	c.prompt.busy.Unlock()
	for _, l := range c.lanes {
		l.mu.Lock()
		k := l.conn
		l.mu.Unlock()
		if k != nil && k.server == s {
			k.close(errDamaging)
		}
	}
	return true
}

func (rj *rejected) noteAll(blocks []*block) {
	for _, b := range blocks {
		rj.note(b.req)
	}
}
