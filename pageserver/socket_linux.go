package pageserver

import (
	"errors"
	"net"

	"golang.org/x/sys/unix"
)

// How much a socket holds that is not on its way. On a connection with demand
// reads more would stand before one of them. Where there is nothing but
// background, it is what the line has to do until the helper that sends more
// has got a processor, which on a busy machine takes milliseconds (two
// processors, 1 Gbit/s: 95 % of the line with half a MiB, 98 % with 2).
const (
	unsentMax        = 512 << 10
	unsentBackground = 2 << 20
)

// prepareSocket looks what the connection can do.
func (c *conn) prepareSocket() {
	switch nc := c.nc.(type) {
	case *net.TCPConn:
		raw, err := nc.SyscallConn()
		if err != nil {
			return
		}
		c.raw = raw
		c.limitUnsent(unsentBackground)
	case *net.UnixConn:
		if raw, err := nc.SyscallConn(); err == nil {
			c.raw = raw
		}
	}
}

// expectDemand notes that a connection has demand reads.
func (c *conn) expectDemand() {
	if _, ok := c.nc.(*net.TCPConn); ok && !c.demanding {
		c.limitUnsent(unsentMax)
	}
	c.demanding = true
}

func (c *conn) limitUnsent(n int) {
	_ = c.raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, n)
	})
}

// unacknowledged reports whether the socket holds bytes that the peer has not
// taken.
func unacknowledged(nc *net.TCPConn) bool {
	raw, err := nc.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	_ = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	return n > 0
}

// errShrunk is a file that has become shorter while it was being sent. The
// client has been promised bytes that there are not, and is told nothing more.
var errShrunk = errors.New("an object has become shorter while it was sent")

// A sending is a message on its way: a head, and then bytes of a file.
type sending struct {
	room [headRoom]byte
	head []byte // what is left of it
	off  int64
	left int // bytes of the file
	n    int // as it was at first
	err  error
}

// start makes the request's next piece the one to be sent.
func (c *conn) start(s *sending, r *request) {
	s.head, s.n = c.pieceHead(s.room[:0], r)
	s.off, s.left = r.off, s.n
}

// sendFile sends the next piece of a request, and of background those that
// follow while nobody else wants to send, without copying them.
func (c *conn) sendFile(r *request, parked func()) error {
	if err := c.extendWrite(); err != nil {
		return err
	}
	var s sending
	c.start(&s, r)
	full := false
	err := c.raw.Write(func(fd uintptr) (done bool) {
		if r.lane == LaneDemand {
			if done = s.send(int(fd), r.object.fd); done && s.err == nil {
				c.sent(r, s.n)
			}
			return done
		}
		c.server.helpers.do(func() { done = c.sendTurn(&s, r, int(fd), full) })
		if !done {
			full = true
			parked()
		}
		return done
	})
	return errors.Join(s.err, err)
}

// sendTurn sends what the socket takes of a turn; it reports false if it is
// full. If it was, the turn is somebody else's by now and the time that the
// client has runs: it ends with the message that was begun.
func (c *conn) sendTurn(s *sending, r *request, fd int, wasFull bool) (done bool) {
	for turn := s.n; ; turn += s.n {
		if !s.send(fd, r.object.fd) {
			return false
		}
		if s.err != nil {
			return true
		}
		c.sent(r, s.n)
		if r.off == r.end || wasFull || turn >= turnMax || c.out.wanted() || r.cancelled.Load() ||
			!r.object.unchanged() || !r.object.cached(r.off, r.pieceSize()) {
			return true
		}
		c.start(s, r)
	}
}

// send sends what the socket takes now; it reports false if that was not all.
func (s *sending) send(socket, file int) (done bool) {
	for s.err == nil && (s.left > 0 || len(s.head) > 0) {
		var k int
		var err error
		if len(s.head) > 0 {
			k, err = unix.SendmsgN(socket, s.head, nil, nil, unix.MSG_MORE|unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
			s.head = s.head[max(k, 0):]
		} else {
			if k, err = unix.Sendfile(socket, file, &s.off, s.left); err == nil && k == 0 {
				err = errShrunk
			}
			s.left -= max(k, 0)
		}
		switch {
		case errors.Is(err, unix.EAGAIN):
			return false
		case !errors.Is(err, unix.EINTR):
			s.err = err
		}
	}
	return true
}
