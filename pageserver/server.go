package pageserver

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lazyrestore/lazyrestore/pageserver/peerlog"
	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// ServerOptions are the wishes for a Server. The zero value works.
type ServerOptions struct {
	Limits    wire.Limits   // what each connection is granted; 0: 16 MiB, 256 requests, 64 images
	MaxConns  int           // connections at once; 0: 4096
	MaxTold   int           // connections beyond, at once, that are told so for a while; the others are closed; 0: 64
	HelloTime time.Duration // for TLS and HELLO of a new connection; 0: 10 s
	IdleTime  time.Duration // of silence, after which a connection is closed; 0: 2 minutes
	WriteTime time.Duration // for a client to take a message; 0: 30 s
	Agent     string        // name and version of the program, told to clients
	Logger    *slog.Logger  // nil: no log
}

func (o ServerOptions) withDefaults() ServerOptions {
	o.Limits.Read = max(cmp.Or(o.Limits.Read, 16<<20), wire.MinRead)
	o.Limits.Requests = max(cmp.Or(o.Limits.Requests, 256), wire.MinRequests)
	o.Limits.Images = max(cmp.Or(o.Limits.Images, 64), wire.MinImages)
	o.MaxConns = cmp.Or(o.MaxConns, 4096)
	o.MaxTold = cmp.Or(o.MaxTold, 64)
	o.HelloTime = cmp.Or(o.HelloTime, 10*time.Second)
	o.IdleTime = cmp.Or(o.IdleTime, 2*time.Minute)
	o.WriteTime = cmp.Or(o.WriteTime, 30*time.Second)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// A Server serves the images of a catalog on any number of listeners. Its
// methods may be called concurrently.
type Server struct {
	catalog *Catalog
	opts    ServerOptions
	id      [16]byte
	turns   *turns
	helpers helpers
	buffers atomic.Int32 // long ones that are in use
	looking atomic.Int32 // goroutines that look for the next request
	counters
	log *peerlog.Log

	conns sync.WaitGroup // goroutines of connections

	mu        sync.Mutex
	listeners map[net.Listener]struct{} // under mu
	open      map[*conn]struct{}        // under mu
	quiet     quiet                     // under mu: those of open that have not said HELLO
	clients   map[clientKey]*client     // under mu
	refusing  int                       // under mu: connections too many that are being told so
	leaving   bool                      // under mu
}

// ErrServerClosed is returned by Serve after Shutdown.
var ErrServerClosed = errors.New("the page server has been shut down")

// A clientKey tells clients apart: no peer can pass for one at another address.
type clientKey struct {
	host string
	id   [16]byte
}

// A client has one or several connections.
type client struct {
	waiters
	conns int // under Server.mu
}

// NewServer makes a server; Serve sets it to work.
func NewServer(catalog *Catalog, opts ServerOptions) *Server {
	s := &Server{
		catalog: catalog, opts: opts.withDefaults(),
		turns:     newTurns(runtime.NumCPU()),
		listeners: make(map[net.Listener]struct{}),
		open:      make(map[*conn]struct{}),
		quiet:     make(quiet),
		clients:   make(map[clientKey]*client),
	}
	s.log = peerlog.New(s.opts.Logger)
	_, _ = rand.Read(s.id[:]) // never fails
	return s
}

// Serve accepts connections until Shutdown, and then returns ErrServerClosed;
// else the listener's error. It takes the listener over. Connections of TCP and
// unix sockets are served with sendfile; others, such as those of a TLS
// listener, by copying.
func (s *Server) Serve(ln net.Listener) error {
	if !s.addListener(ln) {
		return errors.Join(ErrServerClosed, ln.Close())
	}
	defer s.removeListener(ln)
	s.helpers.start(runtime.NumCPU())
	pause := time.Duration(0)
	for {
		nc, err := ln.Accept()
		switch {
		case err == nil:
			pause = 0
			s.accept(nc)
		case s.isLeaving():
			return ErrServerClosed
		case errors.Is(err, net.ErrClosed):
			return err
		default:
			// Out of descriptors or memory: connections end, and then there are some.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.log.Warn("accept failed", "error", err, "pause", pause)
			time.Sleep(pause)
		}
	}
}

func (s *Server) addListener(ln net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leaving {
		return false
	}
	s.listeners[ln] = struct{}{}
	return true
}

func (s *Server) removeListener(ln net.Listener) {
	s.mu.Lock()
	delete(s.listeners, ln)
	s.mu.Unlock()
	_ = ln.Close()
}

func (s *Server) isLeaving() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leaving
}

// accept starts serving a connection. Where there are too many, one that has said nothing
// gives way: who may connect and no more, as without a certificate, keeps nobody out that
// comes from elsewhere, unless he has many addresses.
func (s *Server) accept(nc net.Conn) {
	s.accepted.Add(1)
	if loser := s.admit(nc); loser != nil {
		loser.giveWay() // before the next one is accepted: descriptors are few
	}
}

// admit serves a connection, or refuses it. It takes the one that has to give way for it
// off the books, if any.
func (s *Server) admit(nc net.Conn) (loser *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leaving {
		_ = nc.Close()
		return nil
	}
	if len(s.open) >= s.opts.MaxConns {
		if loser = s.quiet.oldest(origin(nc)); loser == nil {
			s.turnDown(nc)
			return nil
		}
		s.gaveWay.Add(1)
		s.remove(loser)
	}
	c := newConn(s, nc)
	s.open[c] = struct{}{}
	s.quiet.add(c)
	s.conns.Go(c.serve)
	return loser
}

// turnDown ends a connection that is one too many. s.mu is held.
func (s *Server) turnDown(nc net.Conn) {
	s.refused.Add(1)
	if s.refusing >= s.opts.MaxTold {
		_ = nc.Close()
		return
	}
	s.refusing++
	s.conns.Go(func() { s.refuse(nc) })
}

// remove takes a connection off the books. s.mu is held.
func (s *Server) remove(c *conn) {
	delete(s.open, c)
	s.quiet.remove(c)
}

// refuse tells a connection that it is one too many.
func (s *Server) refuse(nc net.Conn) {
	s.log.Warn("too many connections", "peer", nc.RemoteAddr().String(), "limit", s.opts.MaxConns)
	c := newConn(s, nc)
	if c.raw != nil { // a handshake of TLS would be work for the client's asking
		c.farewell(&wire.Error{Code: wire.CodeBusy, Text: "too many connections"})
	}
	_ = nc.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refusing--
}

// join counts a connection, which has said HELLO, as one of the client's; it reports
// false for one that has given way meanwhile.
func (s *Server) join(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.quiet.remove(c) {
		return false
	}
	cl := s.clients[c.key]
	if cl == nil {
		cl = new(client)
		s.clients[c.key] = cl
	}
	cl.conns++
	c.client = cl
	return true
}

// forget is the end of a connection.
func (s *Server) forget(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(c)
	if c.client == nil {
		return
	}
	if c.client.conns--; c.client.conns == 0 {
		delete(s.clients, c.key)
	}
}

// Shutdown ends the server: no connection is accepted any more, clients are
// told to go elsewhere, what is in flight is answered. It returns when all
// connections are closed; those that are open when ctx is done are cut, and its
// error returned.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.leaving = true
	for ln := range s.listeners {
		_ = ln.Close()
	}
	for c := range s.open {
		s.conns.Go(c.leave)
	}
	s.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		s.conns.Wait()
		s.helpers.end()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	for c := range s.open {
		_ = c.nc.Close()
	}
	s.mu.Unlock()
	<-ended
	return context.Cause(ctx)
}
