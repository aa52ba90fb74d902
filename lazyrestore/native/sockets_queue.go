package native

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// What is queued in a unix socket is read and stays there (MSG_PEEK). Where the program
// has set an offset for that (SO_PEEK_OFF) each such read moves it, so that nothing is
// read. Of messages that one after the other are to be read the offset is set for as long.
// It passes over an empty message that has been read so before, as by an earlier
// checkpoint: those are refused, and are found by what the sender has in flight.

const (
	maxQueue   = 64 << 20
	maxMessage = 8 << 20

	readAhead    = "what is queued in it is being read ahead (SO_PEEK_OFF)"
	emptyMessage = "an empty message is queued in it"
	largeMessage = "a message queued in it is too large"
)

// unixQueue reads what is queued in a unix socket, and leaves it there.
func unixQueue(s *Socket, fd int) (queue [][]byte, why string, err error) {
	if events, err := pollNow(fd); err != nil || events&unix.POLLIN == 0 {
		return nil, "", err
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil || n > maxQueue {
		return nil, "", fmt.Errorf("get its fill of %d bytes: %w", n, err)
	}
	if s.Type == unix.SOCK_STREAM && n == 0 {
		return nil, "", nil // its end
	}
	offset, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF)
	if err != nil {
		return nil, "", err
	}
	if offset >= 0 {
		return nil, readAhead, nil
	}
	if s.Type != unix.SOCK_STREAM {
		return messages(s, fd, n)
	}
	b, why, err := peek(fd, n)
	if err == nil && why == "" && len(b) != n {
		return nil, "what is queued in it cannot be read as a whole", nil
	}
	return [][]byte{b}, why, err
}

// messages reads the messages that are queued in a socket, n bytes if it is one of
// sequenced packets.
func messages(s *Socket, fd, n int) (queue [][]byte, why string, err error) {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0); err != nil {
		return nil, "", err
	}
	defer func() {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, -1))
	}()
	for {
		b, why, err := peek(fd, maxMessage)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return queue, "", nil
		case err != nil || why != "":
			return nil, why, err
		case len(b) == 0 && n == 0 && s.Type == unix.SOCK_SEQPACKET && s.Shutdown&1 != 0:
			return queue, "", nil // its end, which reads like an empty message
		case len(b) == 0:
			return nil, emptyMessage, nil
		}
		queue = append(queue, b)
		n -= len(b)
	}
}

// wholeQueue compares the messages that were read with what their sender has in
// flight, which only counts how much memory that takes: as much as the same messages
// take between two sockets of ours.
func wholeQueue(s *Socket, sender int) (why string, err error) {
	flying, err := unix.IoctlGetInt(sender, unix.TIOCOUTQ)
	if err != nil {
		return "", err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, s.Type|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	for _, m := range s.Queue {
		err := unix.Send(pair[0], m, 0)
		if errors.Is(err, unix.EMSGSIZE) { // the sender may have been allowed more than is usual
			if err = setBuffer(pair[0], unix.SO_SNDBUF, 2*len(m)); err == nil {
				err = unix.Send(pair[0], m, 0)
			}
		}
		if errors.Is(err, unix.EMSGSIZE) {
			return largeMessage, nil
		}
		if err != nil {
			return "", err
		}
		n, err := unix.IoctlGetInt(pair[0], unix.TIOCOUTQ)
		if err != nil {
			return "", err
		}
		if _, _, err := unix.Recvfrom(pair[1], nil, unix.MSG_TRUNC); err != nil {
			return "", err
		}
		flying -= n
	}
	if flying != 0 {
		return emptyMessage + ", or its other end has sent to others who have not read it", nil
	}
	return "", nil
}

// unreadMessages refuses those of a socket without another end, which only one for
// datagrams can have.
func unreadMessages(s *Socket, fd int) (why string, err error) {
	events, err := pollNow(fd)
	if err != nil || events&unix.POLLIN == 0 || s.Type != unix.SOCK_DGRAM {
		return "", err
	}
	// One that is shut down can be read though it has none. Of an empty one this is no
	// more than a look.
	if n, err := unix.IoctlGetInt(fd, unix.TIOCINQ); n == 0 && err == nil {
		if _, _, err := peek(fd, 0); errors.Is(err, unix.EAGAIN) {
			return "", nil
		}
	}
	return "it has messages that were not read, of senders who are not known", nil
}

// peek reads what a socket has next, without taking it.
func peek(fd, n int) (b []byte, why string, err error) {
	b = make([]byte, n)
	got, _, flags, _, err := unix.Recvmsg(fd, b, nil, unix.MSG_PEEK|unix.MSG_DONTWAIT)
	switch {
	case err != nil:
		return nil, "", err
	case flags&unix.MSG_CTRUNC != 0:
		return nil, "descriptors or credentials are queued in it", nil
	case flags&unix.MSG_TRUNC != 0:
		return nil, largeMessage, nil
	}
	return slices.Clone(b[:got]), "", nil
}
