package uffd_test

import (
	"errors"
	"io"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/uffd"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// pair makes two connected sockets for the time of the test.
func pair(t *testing.T, kind int) (a, b int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Close(fds[0])
		_ = unix.Close(fds[1])
	})
	return fds[0], fds[1]
}

func TestSendReceive(t *testing.T) {
	uffdtest.Need(t, "uffd")
	c := uffdtest.Start(t, uffdtest.Options{})
	for _, tt := range []struct {
		name    string
		kind    int
		payload string
	}{
		{"stream", unix.SOCK_STREAM, "hello"},
		{"datagrams", unix.SOCK_SEQPACKET, "hello"},
		{"no payload", unix.SOCK_STREAM, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := pair(t, tt.kind)
			if err := uffd.SendFD(a, c.FD, []byte(tt.payload)); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, len(tt.payload))
			f, n, err := uffd.ReceiveFD(b, buf)
			if err != nil || string(buf[:min(n, len(buf))]) != tt.payload {
				t.Fatalf("ReceiveFD = %q, %v", buf[:n], err)
			}
			defer func() { _ = f.Close() }()
			if err := f.Wake(c.Start, c.Length); err != nil {
				t.Errorf("the received descriptor: %v", err)
			}
			if flags, err := unix.FcntlInt(uintptr(f.Fd()), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("the received descriptor is not closed on exec: %#x, %v", flags, err)
			}
			// It was made non-blocking, which its new owner has to know.
			if _, err := f.Read(make([]uffd.Msg, 1)); !errors.Is(err, unix.EAGAIN) {
				t.Errorf("Read = %v, want EAGAIN", err)
			}
		})
	}
}

func TestReceiveErrors(t *testing.T) {
	null := func(t *testing.T) int {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	send := func(t *testing.T, sock int, payload string, fds ...int) {
		t.Helper()
		var rights []byte
		if len(fds) > 0 {
			rights = unix.UnixRights(fds...)
		}
		if err := unix.Sendmsg(sock, []byte(payload), rights, nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	many := func(n, fd int) []int {
		fds := make([]int, n)
		for i := range fds {
			fds[i] = fd
		}
		return fds
	}
	tests := []struct {
		name string
		send func(t *testing.T, sock int)
		want error
		n    int
	}{
		{"closed", func(t *testing.T, sock int) {
			if err := unix.Shutdown(sock, unix.SHUT_WR); err != nil {
				t.Fatal(err)
			}
		}, io.EOF, 0},
		{"no descriptor", func(t *testing.T, sock int) { send(t, sock, "hi") }, uffd.ErrNoDescriptor, 2},
		{"two descriptors", func(t *testing.T, sock int) { send(t, sock, "hi", many(2, null(t))...) }, unix.EBADMSG, 2},
		{"too many to see", func(t *testing.T, sock int) { send(t, sock, "hi", many(50, null(t))...) }, unix.EMSGSIZE, 2},
		{"payload too long", func(t *testing.T, sock int) { send(t, sock, "hello", null(t)) }, unix.EMSGSIZE, 4},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, b := pair(t, unix.SOCK_SEQPACKET)
			tt.send(t, a)
			before := descriptors(t)
			f, n, err := uffd.ReceiveFD(b, make([]byte, 4))
			if f != nil || n != tt.n || !errors.Is(err, tt.want) {
				t.Errorf("ReceiveFD = %v, %d, %v; want %d, %v", f, n, err, tt.n, tt.want)
			}
			if after := descriptors(t); after != before {
				t.Errorf("%d descriptors are open, %d were", after, before)
			}
		})
	}
}

// A descriptor that comes when no number is free is lost, and that is said.
func TestReceiveWithoutRoom(t *testing.T) {
	ours, theirs := pair(t, unix.SOCK_STREAM)
	if err := unix.Sendmsg(theirs, []byte("hi"), unix.UnixRights(ours), nil, 0); err != nil {
		t.Fatal(err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	_, n, err := uffd.ReceiveFD(ours, make([]byte, 4))
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, unix.EMFILE) || n != 2 {
		t.Errorf("ReceiveFD = %d bytes, %v; want 2, EMFILE", n, err)
	}
}

// One that gets no number though some are free is not lost for want of them.
func TestReceiveLostOtherwise(t *testing.T) {
	ours, theirs := pair(t, unix.SOCK_STREAM)
	// Credentials, which come first, leave no room for it.
	if err := unix.SetsockoptInt(ours, unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
		t.Fatal(err)
	}
	if err := unix.Sendmsg(theirs, []byte("hi"), unix.UnixRights(ours), nil, 0); err != nil {
		t.Fatal(err)
	}
	before := descriptors(t)
	_, n, err := uffd.ReceiveFD(ours, make([]byte, 4))
	if err == nil || errors.Is(err, unix.EMFILE) || !strings.Contains(err.Error(), "it is lost") || n != 2 {
		t.Errorf("ReceiveFD = %d bytes, %v; want 2, that it is lost and not EMFILE", n, err)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
}

func TestSendToNobody(t *testing.T) {
	a, b := pair(t, unix.SOCK_SEQPACKET)
	if err := unix.Shutdown(b, unix.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
	if err := uffd.SendFD(a, uffd.FromFD(b), nil); !errors.Is(err, unix.EPIPE) {
		t.Errorf("SendFD = %v, want EPIPE", err)
	}
}
