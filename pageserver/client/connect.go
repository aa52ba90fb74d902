package client

import (
	"context"
	"errors"
	"slices"
	"time"
)

// How a lane comes to a connection. Servers are tried one after the other, the best first. One that
// is not there within headStart goes on being tried, with the next one beside it: a dead one
// takes the whole of Options.Timeout. Who is there first is used. A better one that comes later takes its
// place: what only that gives undamaged would else never be asked of a server far away.

// headStart is what a server has of the next one; over a long way TLS and a greeting take four round trips.
const headStart = 500 * time.Millisecond

var (
	errNotNeeded = errors.New("another server was there first")
	errTurn      = errors.New("its pause is not over")
)

// A result is how the try of a server has ended.
type result struct {
	server *server
	err    error
}

// round tries each server once, the best first, until one has the image open. Those
// that are still being tried by then may yet be preferred. It is called by one goroutine at a time, which
// then takes their results too.
func (l *lane) round(ctx context.Context) error {
	if l.isConnected() {
		return nil
	}
	list := l.client.servers.order()
	next := time.NewTimer(0)
	defer next.Stop()
	for len(list) > 0 || len(l.trying) > 0 {
		select {
		case <-next.C:
		case res := <-l.results:
			l.settle(res)
			if res.err == nil || l.isConnected() {
				l.pump() // it may be lost again, and who lost it have had us look for another before
				return nil
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if list = slices.DeleteFunc(list, l.isTried); len(list) > 0 {
			l.try(list[0])
			list = list[1:]
			next.Reset(headStart)
		}
	}
	return l.client.servers.unavailable(l.client.addr)
}

func (l *lane) isTried(s *server) bool { return slices.Contains(l.trying, s) }

// isConnected reports whether no server has to be looked for.
func (l *lane) isConnected() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed || l.conn != nil && l.conn.opened
}

// try begins to connect to s.
func (l *lane) try(s *server) {
	l.trying = append(l.trying, s)
	l.client.running.Go(func() {
		ctx := l.client.ctx
		err := errTurn
		if l.client.servers.turn(ctx, s) {
			err = l.connect(ctx, s)
		}
		if ctx.Err() != nil {
			err = ErrClosed
		}
		l.results <- result{s, err}
	})
}

// settle notes how a try has ended.
func (l *lane) settle(res result) {
	l.trying = slices.DeleteFunc(l.trying, func(s *server) bool { return s == res.server })
	switch {
	case res.err == nil:
		l.client.servers.opened(res.server)
	case errors.Is(res.err, ErrClosed), errors.Is(res.err, errTurn), errors.Is(res.err, errNotNeeded):
	default:
		l.client.servers.failed(res.server, res.err)
		l.client.opts.Logger.Info("page server not available", "server", res.server.String(), "lane", l.kind.String(), "error", res.err)
	}
}

// connect opens a connection to s and the image on it, and sends along what is
// waiting, unless another connection has that.
func (l *lane) connect(ctx context.Context, s *server) error {
	ctx, cancel := context.WithTimeoutCause(ctx, l.client.opts.Timeout, ErrSilent)
	defer cancel()
	c, err := l.client.opts.Dial(ctx, s.Server)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return err
	}
	k := newConn(l, s, c)
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		_ = c.Close()
		return ErrClosed
	}
	out := k.greeting(nil)
	if l.conn == nil {
		out = k.take(out)
		l.conn = k
	}
	l.mu.Unlock()
	l.client.running.Go(k.read)
	k.write(out)
	select {
	case <-k.ready:
	case <-ctx.Done():
		k.close(context.Cause(ctx))
		<-k.gone
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if k.opened {
		return nil
	}
	return k.why
}

// adopt has k, which has the image open now, be the lane's connection, and reports false where it is not needed.
func (l *lane) adopt(k *conn) bool {
	l.mu.Lock()
	o := l.conn
	if l.closed || o != nil && o != k && o.opened && !l.client.servers.better(k.server, o.server) {
		l.mu.Unlock()
		return false
	}
	k.opened = true
	idle := false
	if !k.leaving {
		l.conn = k
	}
	switch {
	case k.leaving, o == nil, o == k:
	case !o.opened: // it may yet be there, but what it was given does not wait for that
		l.waiting = append(o.takeBack(), l.waiting...)
	default:
		o.leaving, o.why = true, errNotNeeded
		if idle = len(o.inflight) == 0; !idle {
			l.leaving = append(l.leaving, o)
		}
	}
	l.mu.Unlock()
	if idle {
		o.close(errNotNeeded)
	}
	return true
}
