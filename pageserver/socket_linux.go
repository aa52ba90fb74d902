package pageserver

import (
	"errors"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// unsentMax is how much a socket holds that is not on its way: more would
// stand before a demand read of the same connection.
const unsentMax = 512 << 10

// prepareSocket looks what the connection can do.
func (c *conn) prepareSocket() {
	switch nc := c.nc.(type) {
	case *net.TCPConn:
		raw, err := nc.SyscallConn()
		if err != nil {
			return
		}
		c.raw = raw
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentMax)
		})
	case *net.UnixConn:
		if raw, err := nc.SyscallConn(); err == nil {
			c.raw = raw
		}
	}
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

// sendFile sends head and then n bytes of the object, without copying them.
func (c *conn) sendFile(head []byte, o *object, off int64, n int, parked func()) error {
	if err := c.nc.SetWriteDeadline(time.Now().Add(c.server.opts.WriteTime)); err != nil {
		return err
	}
	var failed error
	err := c.raw.Write(func(fd uintptr) bool {
		for failed == nil && n > 0 {
			var err error
			if len(head) > 0 {
				var k int
				k, err = unix.SendmsgN(int(fd), head, nil, nil, unix.MSG_MORE|unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
				head = head[max(k, 0):]
			} else {
				var k int
				if k, err = unix.Sendfile(int(fd), o.fd, &off, n); err == nil && k == 0 {
					err = errShrunk
				}
				n -= max(k, 0)
			}
			switch {
			case errors.Is(err, unix.EAGAIN):
				parked()
				return false
			case !errors.Is(err, unix.EINTR):
				failed = err
			}
		}
		return true
	})
	return errors.Join(failed, err)
}
