package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// A lane is the requests of one urgency, and the connection that they go over.
type lane struct {
	client     *Client
	kind       image.Lane
	background bool
	need       chan struct{} // has a token when there are requests and no connection
	trying     []*server     // of whoever calls round: those of which a result is to come
	results    chan result   // has room for one of each server

	mu      sync.Mutex
	conn    *conn      // guarded by mu: nil while there is none
	leaving []*conn    // guarded by mu: of servers that leave, with requests in flight
	waiting []*request // guarded by mu: not sent, or to be sent again
	closed  bool       // guarded by mu
}

func newLane(c *Client, kind image.Lane) *lane {
	return &lane{
		client: c, kind: kind, background: kind == image.Background, need: make(chan struct{}, 1),
		results: make(chan result, len(c.servers.list)),
	}
}

// send has requests sent, now or once there is a connection.
func (l *lane) send(reqs ...*request) {
	l.mu.Lock()
	if l.closed {
		for _, r := range reqs {
			r.err = ErrClosed
			close(r.done)
		}
		l.mu.Unlock()
		return
	}
	l.waiting = append(l.waiting, reqs...)
	l.mu.Unlock()
	l.pump()
}

// pump sends what is waiting, as far as the connection takes it.
func (l *lane) pump() {
	l.mu.Lock()
	k := l.conn
	if k == nil {
		if len(l.waiting) > 0 {
			l.wake()
		}
		l.mu.Unlock()
		return
	}
	out := k.take(nil)
	l.mu.Unlock()
	k.write(out)
}

// wake has run look for a server. The caller holds mu.
func (l *lane) wake() {
	select {
	case l.need <- struct{}{}:
	default:
	}
}

// wait waits for a request. Its buffer is the caller's again afterwards,
// whatever the error.
func (l *lane) wait(ctx context.Context, r *request) error {
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
	}
	l.giveUp(r)
	select {
	case <-r.done: // it was quicker
		return r.err
	default:
		return context.Cause(ctx)
	}
}

// errGivenUp is why a connection ends that brings what nobody waits for any more. It is no
// fault of the server's.
var errGivenUp = errors.New("a read was given up while it came")

// giveUp has a request forgotten, and its buffer no longer written to.
func (l *lane) giveUp(r *request) {
	for {
		l.mu.Lock()
		if i := slices.Index(l.waiting, r); i >= 0 {
			l.waiting = slices.Delete(l.waiting, i, i+1)
			l.mu.Unlock()
			return
		}
		k := r.on
		if k == nil || k.inflight[r.id] != r {
			l.mu.Unlock()
			return // done
		}
		if k.filling != r {
			delete(k.inflight, r.id)
			leave := k.leaving && len(k.inflight) == 0
			l.mu.Unlock()
			if leave {
				k.close(errLeaving)
				return
			}
			k.write(wire.AppendCancel(nil, r.id))
			return
		}
		l.mu.Unlock()
		k.close(errGivenUp)
		<-k.gone
	}
}

// finish ends a request, if it is on k.
func (l *lane) finish(k *conn, id uint32, err error) {
	l.mu.Lock()
	r := k.inflight[id]
	delete(k.inflight, id)
	if r != nil {
		r.full = time.Since(r.sent) > 2*k.trip
	}
	leave := k.leaving && len(k.inflight) == 0
	more := len(l.waiting) > 0
	l.mu.Unlock()
	if r != nil {
		r.err = err
		close(r.done)
	}
	if leave {
		k.close(errLeaving)
	}
	if more {
		l.pump()
	}
}

func (l *lane) has(k *conn, id uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return k.inflight[id] != nil
}

func (l *lane) isShort(k *conn, id uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := k.inflight[id]
	return r != nil && r.short
}

// lost is the end of a connection: what is not answered waits for another.
func (l *lane) lost(k *conn, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k.why != nil {
		err = k.why
	}
	if l.conn == k {
		l.conn = nil
	}
	l.leaving = slices.DeleteFunc(l.leaving, func(o *conn) bool { return o == k })
	k.filling = nil
	failed := !errors.Is(err, errGivenUp) && !errors.Is(err, errNotNeeded) && !errors.Is(err, errDamaging)
	if failed && k.opened && !l.closed {
		l.client.servers.failed(k.server, err)
	}
	all := k.takeBack()
	back := make([]*request, 0, len(all))
	for _, r := range all {
		if failed {
			r.lost++
		}
		if r.n > r.had {
			r.lost, r.had = 0, r.n
		}
		switch {
		case r.ping:
			close(r.done)
		case r.lost > lostTries*len(l.client.servers.list):
			// It may be the request that servers do not survive; and whoever
			// waits for it has to hear of it at some time.
			r.err = l.client.servers.unavailable(l.client.addr)
			close(r.done)
		default:
			back = append(back, r)
		}
	}
	k.inflight = nil
	l.waiting = append(back, l.waiting...)
	k.why = err
	if !k.opened {
		close(k.ready)
	}
	if l.closed {
		return
	}
	if k.opened {
		l.client.opts.Logger.Info("connection to a page server lost", "server", k.server.String(), "lane", l.kind.String(),
			"again", len(back), "error", err)
	}
	if len(l.waiting) > 0 {
		l.wake()
	}
}

// lostTries is how often each server gets a request and is lost before it
// answers, until the request fails.
const lostTries = 2

// run keeps the lane connected while there is something to ask, until ctx is
// done.
func (l *lane) run(ctx context.Context) {
	tick := time.NewTicker(l.client.opts.Timeout / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			l.watch()
		case res := <-l.results:
			l.settle(res)
		case <-l.need:
			if err := l.round(ctx); err != nil {
				l.fail(err)
			}
		}
	}
}

// watch looks whether servers still answer, those that leave too, and lets them know
// that we live.
func (l *lane) watch() {
	l.mu.Lock()
	all := slices.Clone(l.leaving)
	if l.conn != nil {
		all = append(all, l.conn)
	}
	l.mu.Unlock()
	for _, k := range all {
		l.watchOne(k)
	}
}

func (l *lane) watchOne(k *conn) {
	l.mu.Lock()
	silent := time.Since(time.Unix(0, k.heard.Load()))
	var out []byte
	var listen, lost bool
	var crawls error
	switch {
	case len(k.inflight) > 0:
		lost = silent > l.client.opts.Timeout
		listen = silent > l.client.opts.Timeout/2
		crawls = k.crawls(time.Now())
	case k.inflight != nil && k.opened && !k.leaving && silent > k.idle/3: // nil: it has ended meanwhile
		out = k.add(nil, &request{ping: true, done: make(chan struct{})})
	}
	l.mu.Unlock()
	if lost {
		k.close(fmt.Errorf("%w for %v", ErrSilent, silent.Round(time.Millisecond)))
		return
	}
	if crawls != nil {
		k.close(crawls)
		return
	}
	if listen {
		k.in.expect(1) // it may be slow, and what the reader is woken for not all there
	}
	k.write(out)
}

// fail ends all requests that wait for a connection.
func (l *lane) fail(err error) {
	l.mu.Lock()
	failed := l.waiting
	l.waiting = nil
	l.mu.Unlock()
	for _, r := range failed {
		r.err = err
		close(r.done)
	}
}

// close ends the lane and all that is asked of it.
func (l *lane) close() {
	l.mu.Lock()
	l.closed = true
	all := slices.Clone(l.leaving)
	if l.conn != nil {
		all = append(all, l.conn)
	}
	l.mu.Unlock()
	for _, k := range all {
		k.close(ErrClosed)
		<-k.gone
	}
	l.fail(ErrClosed)
}
