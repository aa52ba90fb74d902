package pageserver

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/lazyrestore/lazyrestore/pageserver/peerlog"
)

// Options are for Receive and Serve; the zero value works.
type Options struct {
	MaxClients int          // connections at once; 0 is 256
	Logger     *slog.Logger // nil: no log
}

const (
	defaultClients = 256
	// How long a peer may take to accept bytes: it is dead, or it stops us.
	writePatience = 2 * time.Minute
	// How long a peer may take to close a connection after its CLOSE.
	closePatience = 10 * time.Second
)

func (o Options) log() *slog.Logger {
	if o.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Logger
}

// clients are the connections of a server.
type clients struct {
	log *peerlog.Log
	max int
	wg  sync.WaitGroup

	mu     sync.Mutex
	silent []net.Conn            // under mu: they have said nothing yet; the oldest first
	all    map[net.Conn]struct{} // under mu
	closed bool                  // under mu
}

// accept hands connections to serve, in goroutines, until the listener is
// closed. It returns when all of them have ended.
func (o Options) accept(ctx context.Context, l net.Listener, serve func(net.Conn, *clients) error) error {
	c := &clients{log: peerlog.New(o.log()), max: o.MaxClients, all: map[net.Conn]struct{}{}}
	if c.max <= 0 {
		c.max = defaultClients
	}
	stop := context.AfterFunc(ctx, func() {
		l.Close()
		c.closeAll()
	})
	defer stop()
	defer c.wg.Wait()
	pause := time.Millisecond
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			if !isTemporary(err) {
				return err
			}
			// No descriptor is left, say: the clients go on, and give some back.
			c.log.Warn("cannot accept a connection", "error", err)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			pause = min(2*pause, time.Second)
			continue
		}
		pause = time.Millisecond
		loser, ok := c.add(conn)
		if loser != nil {
			loser.Close()
			c.log.Warn("a client that has said nothing gives way to another", "client", loser.RemoteAddr())
		}
		if !ok {
			conn.Close()
			c.log.Warn("connection refused: too many clients", "client", conn.RemoteAddr(), "clients", c.max)
			continue
		}
		c.wg.Go(func() {
			defer c.remove(conn)
			c.log.Debug("client", "address", conn.RemoteAddr())
			if err := serve(conn, c); err != nil && ctx.Err() == nil {
				c.log.Warn("client dropped", "client", conn.RemoteAddr(), "error", err)
			}
		})
	}
}

// isTemporary reports whether accepting may work again.
func isTemporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary()
}

// add notes a connection. If there are too many, the one that has said nothing
// for longest gives way, and is to be closed; if all have said something, the new one does.
func (c *clients) add(conn net.Conn) (loser net.Conn, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, false
	}
	if len(c.all) >= c.max {
		if len(c.silent) == 0 {
			return nil, false
		}
		loser = c.silent[0]
		delete(c.all, loser)
		c.silent = c.silent[1:]
	}
	c.all[conn] = struct{}{}
	c.silent = append(c.silent, conn)
	return loser, true
}

// spoke notes that a client has said something that is of the protocol.
func (c *clients) spoke(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget(conn)
}

// forget takes a connection off the silent ones; under mu.
func (c *clients) forget(conn net.Conn) {
	for i, s := range c.silent {
		if s == conn {
			c.silent = append(c.silent[:i], c.silent[i+1:]...)
			return
		}
	}
}

func (c *clients) remove(conn net.Conn) {
	conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.all, conn)
	c.forget(conn)
}

func (c *clients) closeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for conn := range c.all {
		conn.Close()
	}
}

// send writes with a deadline.
func send(conn net.Conn, b []byte) error {
	if err := conn.SetWriteDeadline(time.Now().Add(writePatience)); err != nil {
		return err
	}
	_, err := conn.Write(b)
	return err
}

// sendStatus writes an int32.
func sendStatus(conn net.Conn, status int32) error {
	return send(conn, binary.LittleEndian.AppendUint32(nil, uint32(status)))
}

// awaitClose waits until the peer closes the connection, so that what was sent
// last arrives: closing with bytes unread would take it back.
func awaitClose(conn net.Conn) {
	if conn.SetReadDeadline(time.Now().Add(closePatience)) == nil {
		_, _ = io.CopyN(io.Discard, conn, 1<<20)
	}
}
