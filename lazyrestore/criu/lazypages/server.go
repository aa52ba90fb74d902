package lazypages

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pagexfer"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// A Server is a CRIU page server that gives pages. Replies come in the order
// of the requests, over one connection: a fault waits for what was asked for
// before it, so little is asked for in the background at a time. Where the
// connection is lost, reads fail, and the next one makes another; CRIU's own
// server has ended by then, ours has not.
type Server struct {
	// Dial makes a connection: at first, and when one is lost, never two at once.
	Dial func(ctx context.Context) (net.Conn, error)
	// Address tells the server from others, for who would go on with it; "" if
	// it has none.
	Address string
	// Dialect is the server's: it cannot be found out.
	Dialect pagexfer.Dialect
	// Patience is how long a reply may take, a minute if zero, before the
	// connection counts as lost.
	Patience time.Duration

	once       sync.Once
	background chan struct{} // has a token for each read in the background

	mu   sync.Mutex
	link *link // guarded by mu; nil if there is none
}

const (
	// backgroundReads is how many reads in the background are under way.
	backgroundReads = 2
	// maxAsk is how much is asked for at once, in bytes: several faults' worth.
	maxAsk = 256 << 10
	// leaveTime is how long a server may take to say good-bye.
	leaveTime = 5 * time.Second
	// defaultPatience is Server.Patience unless said: for 256 KiB, and what is
	// asked for before them.
	defaultPatience = time.Minute
)

// read fills what is asked for. It may be called concurrently.
func (s *Server) read(ctx context.Context, asks []ask, lane image.Lane) error {
	s.once.Do(func() { s.background = make(chan struct{}, backgroundReads) })
	if lane == image.Background {
		select {
		case s.background <- struct{}{}:
			defer func() { <-s.background }()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	l, err := s.linked(ctx)
	if err != nil {
		return fmt.Errorf("page server: %w", noEnd(err))
	}
	for len(asks) > 0 {
		if asks, err = l.round(ctx, asks); err != nil {
			if ctx.Err() == nil {
				s.drop(l)
			}
			return fmt.Errorf("page server: %w", noEnd(err))
		}
	}
	return nil
}

// noEnd is err, but for the end of a stream: of an image.Source it would mean that an object ends,
// and so damage, of which there are no other bytes.
func noEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New(err.Error())
	}
	return err
}

// linked is the connection, made if there is none.
func (s *Server) linked(ctx context.Context) (*link, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link != nil {
		return s.link, nil
	}
	conn, err := s.Dial(ctx)
	if err != nil {
		return nil, err
	}
	s.link = &link{conn: conn, client: pagexfer.NewClient(conn, s.Dialect), patience: s.Patience, over: make(chan struct{})}
	if s.link.patience <= 0 {
		s.link.patience = defaultPatience
	}
	s.link.changed.L = &s.link.mu
	go s.link.receive()
	return s.link, nil
}

// drop gives up a connection that has failed.
func (s *Server) drop(l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link == l {
		s.link = nil
	}
	l.end()
}

// Close tells the server that nothing more is wanted, upon which CRIU's ends,
// and lets go of the connection. No read is under way.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link == nil {
		return nil
	}
	l := s.link
	s.link = nil
	return l.close()
}

// A link is one connection, and who waits for replies on it.
type link struct {
	conn   net.Conn
	client *pagexfer.Client

	patience time.Duration
	over     chan struct{} // closed when receive has ended; then err is set
	err      error

	sending sync.Mutex // over Request, so that waiters have the order of requests
	mu      sync.Mutex
	changed sync.Cond // of mu: there is a waiter, or closing
	waiters []waiter  // guarded by mu: the oldest first
	closing bool      // guarded by mu: no more requests come
}

// A waiter is a request without its reply.
type waiter struct {
	b    []byte
	done chan int // gets how many bytes came
}

// round sends all that is asked for, waits for the replies, and gives what is
// still to be asked for.
func (l *link) round(ctx context.Context, asks []ask) (rest []ask, err error) {
	var parts []ask
	for _, a := range asks {
		for len(a.b) > 0 {
			n := min(len(a.b), maxAsk)
			parts = append(parts, ask{a.pid, a.at, a.b[:n]})
			a.at, a.b = a.at+page.Addr(n), a.b[n:]
		}
	}
	waits := make([]waiter, len(parts))
	for i, a := range parts {
		waits[i] = waiter{a.b, make(chan int, 1)}
		if err := l.request(a, waits[i]); err != nil {
			l.end()
			<-l.over // nothing is written to what was asked for from here on
			return nil, err
		}
	}
	for i, a := range parts {
		select {
		case n := <-waits[i].done:
			if n < len(a.b) {
				rest = append(rest, ask{a.pid, a.at + page.Addr(n), a.b[n:]})
			}
		case <-ctx.Done():
			l.end()
			<-l.over
			return nil, context.Cause(ctx)
		case <-l.over:
			return nil, l.err
		}
	}
	return rest, nil
}

// request sends one request.
func (l *link) request(a ask, w waiter) error {
	l.sending.Lock()
	defer l.sending.Unlock()
	l.mu.Lock()
	l.waiters = append(l.waiters, w)
	l.changed.Signal()
	l.mu.Unlock()
	return l.client.Request(pagexfer.Request{PID: uint32(a.pid), Addr: a.at, Pages: len(a.b) >> page.Shift})
}

// receive gives replies to who waits for them, until the connection ends.
func (l *link) receive() {
	defer close(l.over)
	b := make([]byte, maxAsk)
	for l.awaited() {
		// One that never answers would have those wait for ever who could ask anew.
		if err := l.conn.SetReadDeadline(time.Now().Add(l.patience)); err != nil {
			l.err = err
			return
		}
		_, pages, err := l.client.Receive(b)
		if err != nil {
			l.err = fmt.Errorf("connection lost: %w", err)
			_ = l.conn.Close()
			return
		}
		l.mu.Lock()
		w := l.waiters[0]
		l.waiters = l.waiters[1:]
		l.mu.Unlock()
		w.done <- copy(w.b, b[:pages<<page.Shift])
	}
	l.err = net.ErrClosed
}

// awaited waits until there is a reply to wait for, and reports false when
// there will be none.
func (l *link) awaited() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.waiters) == 0 && !l.closing {
		l.changed.Wait()
	}
	return len(l.waiters) > 0
}

// end breaks the connection, which ends receive.
func (l *link) end() {
	_ = l.conn.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closing = true
	l.changed.Signal()
}

// close takes leave of the server and ends receive.
func (l *link) close() error {
	l.mu.Lock()
	l.closing = true
	l.changed.Signal()
	l.mu.Unlock()
	<-l.over
	_ = l.conn.SetDeadline(time.Now().Add(leaveTime))
	return errors.Join(l.client.Close(), l.conn.Close())
}
