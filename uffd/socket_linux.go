package uffd

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// SendFD sends a second reference to f, with payload, as one message over the
// unix socket sock (SCM_RIGHTS). f stays the caller's. An empty payload is
// sent as one zero byte, for a stream carries no descriptor without one.
// EINTR is dealt with; EAGAIN comes from a socket that does not block.
func SendFD(sock int, f *FD, payload []byte) error {
	if len(payload) == 0 {
		payload = []byte{0}
	}
	rights := unix.UnixRights(f.Fd())
	for {
		n, err := unix.SendmsgN(sock, payload, rights, nil, unix.MSG_NOSIGNAL)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("send userfaultfd over socket %d: %w", sock, err)
		case n < len(payload):
			return fmt.Errorf("send userfaultfd over socket %d: %w", sock, io.ErrShortWrite)
		default:
			return nil
		}
	}
}

// ReceiveFD receives one message from the unix socket sock: a descriptor,
// which the caller owns then and which is closed on exec, and up to
// len(payload) bytes, whose count it returns. That the descriptor is a
// userfaultfd is the sender's word.
//
// io.EOF: the other side has closed. ErrNoDescriptor: a message without one;
// the payload is there all the same. EMFILE: this process has no descriptor
// left, and the one that came was closed by the kernel, as it is where a security module forbids it. More than one descriptor, or a payload
// that does not fit into a datagram socket's message, is an error, and the
// descriptors are closed.
func ReceiveFD(sock int, payload []byte) (f *FD, n int, err error) {
	if len(payload) == 0 {
		payload = make([]byte, 1)
	}
	oob := make([]byte, unix.CmsgSpace(8*4)) // room to see, and close, more than one
	var oobn, flags int
	for {
		n, oobn, flags, _, err = unix.Recvmsg(sock, payload, oob, unix.MSG_CMSG_CLOEXEC)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, 0, fmt.Errorf("receive userfaultfd from socket %d: %w", sock, err)
	}
	fds, err := descriptors(oob[:oobn])
	switch {
	case err != nil:
	case n == 0 && len(fds) == 0:
		return nil, 0, io.EOF
	case flags&unix.MSG_CTRUNC != 0 && len(fds) == 0: // there was room in oob
		err = whyLost(sock)
	case flags&(unix.MSG_CTRUNC|unix.MSG_TRUNC) != 0:
		err = fmt.Errorf("message cut off: %w", unix.EMSGSIZE)
	case len(fds) == 0:
		err = ErrNoDescriptor
	case len(fds) > 1:
		err = fmt.Errorf("%d descriptors where one is expected: %w", len(fds), unix.EBADMSG)
	default:
		return FromFD(fds[0]), n, nil
	}
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
	return nil, n, fmt.Errorf("receive userfaultfd from socket %d: %w", sock, err)
}

// whyLost is the error of a descriptor that did not get a number, for which the kernel
// gives no reason.
func whyLost(sock int) error {
	fd, err := unix.FcntlInt(uintptr(sock), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("no number was free for it, and it is lost: %w", err)
	}
	_ = unix.Close(fd)
	return errors.New("no number was free for it, or it was forbidden, and it is lost")
}

// descriptors lists all that came with a message; also with an error it
// returns those that it found.
func descriptors(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parse control message: %w", err)
	}
	var fds []int
	for i := range messages {
		if messages[i].Header.Level != unix.SOL_SOCKET || messages[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		got, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return fds, fmt.Errorf("parse control message: %w", err)
		}
		fds = append(fds, got...)
	}
	return fds, nil
}
