package pageserver

import (
	"io"
	"net"
	"time"

	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// A connection that is closed while the peer's last words are unread is reset,
// and what was sent before it lost. So the server ends its own half first, and
// reads on for a while.
const (
	lingerTime  = 2 * time.Second
	lingerBytes = 1 << 20
)

// farewell ends a connection with an error. Nobody else writes to it any more,
// or is stopped.
func (c *conn) farewell(e *wire.Error) {
	c.server.countError(e.Code)
	deadline := time.Now().Add(lingerTime)
	_ = c.nc.SetDeadline(deadline) // also ends a write that the client does not take
	c.stop()
	// To the end: what else is in flight would be written after our half has
	// ended, and that it fails would reset the connection.
	c.out.take()
	defer c.out.give()
	_, err := c.nc.Write(e.Append(nil, 0))
	if err == nil && c.closeWrite() {
		_ = c.nc.SetReadDeadline(deadline)
		_, _ = io.Copy(io.Discard, io.LimitReader(c.nc, lingerBytes))
	}
}

// closeWrite ends our half of the connection.
func (c *conn) closeWrite() bool {
	half, ok := c.nc.(interface{ CloseWrite() error })
	return ok && half.CloseWrite() == nil
}

// leave tells the client to go elsewhere, and closes the connection when
// nothing is in flight.
func (c *conn) leave() {
	c.mu.Lock()
	begin := c.state == running
	if begin {
		c.state = leaving
	}
	c.mu.Unlock()
	if !begin {
		return
	}
	err := c.send(wire.AppendGoaway(nil, "the server is shutting down"))
	c.mu.Lock()
	if c.state == leaving {
		c.state = told
	}
	c.mu.Unlock()
	if err != nil {
		c.cut(err)
		return
	}
	c.endIfTold()
}

// turnAway answers a request that comes after GOAWAY.
func (c *conn) turnAway(id uint32) error {
	c.mu.Lock()
	closed := c.state == closing
	c.mu.Unlock()
	if closed {
		return nil
	}
	return c.reject(id, wire.CodeGoaway, "the server is shutting down")
}

// endIfTold ends our half of a connection that has said GOAWAY and has nothing
// in flight. The reader goes on until the client ends its own, for a while.
func (c *conn) endIfTold() {
	c.mu.Lock()
	end := c.state == told && c.inFlight == 0
	if end {
		c.state = closing
		_ = c.nc.SetReadDeadline(time.Now().Add(lingerTime))
	}
	c.mu.Unlock()
	if end {
		c.closeWrite()
	}
}

// cut ends a connection that cannot be used any more. What the client has not
// taken is thrown away: the kernel would keep it for as long as the client is
// there.
func (c *conn) cut(err error) {
	if c.stop() {
		c.explain(err)
	}
	nc := c.beneath()
	if tcp, ok := nc.(*net.TCPConn); ok && unacknowledged(tcp) {
		_ = tcp.SetLinger(0)
	}
	_ = nc.Close()
}

// beneath is the connection without TLS.
func (c *conn) beneath() net.Conn {
	if outer, ok := c.nc.(interface{ NetConn() net.Conn }); ok {
		return outer.NetConn()
	}
	return c.nc
}

// giveWay ends a connection that has said nothing, for another one. It does not wait
// for the log.
func (c *conn) giveWay() {
	told := c.stop()
	_ = c.beneath().Close()
	if told {
		go c.server.log.Warn("a connection that has said nothing gives way to another",
			"peer", c.nc.RemoteAddr().String(), "limit", c.server.opts.MaxConns)
	}
}
