package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrDialer says that a server is beyond what Dial knows.
var ErrDialer = errors.New("it takes a resolver, or TLS")

// Light reports whether Dial knows how to connect to s.
func Light(s Server) bool {
	_, err := sockaddr(s)
	return err == nil
}

// Dial connects to servers at IPv4 addresses, at localhost and on unix sockets.
// It stands in the place of package net, the linking of which every local
// restore would pay for. For all else the error is ErrDialer.
func Dial(ctx context.Context, s Server) (Conn, error) {
	to, err := sockaddr(s)
	if err != nil {
		return nil, err
	}
	family := unix.AF_INET
	if _, ok := to.(*unix.SockaddrUnix); ok {
		family = unix.AF_UNIX
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if family != unix.AF_UNIX {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	err = unix.Connect(fd, to)
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return nil, errors.Join(os.NewSyscallError("connect", err), unix.Close(fd))
	}
	f := os.NewFile(uintptr(fd), s.String())
	if err != nil {
		if err := connected(ctx, f); err != nil {
			_ = f.Close()
			return nil, err
		}
	}
	return f, nil
}

// connected waits for the end of a connect that is under way.
func connected(ctx context.Context, f *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = raw.Write(func(fd uintptr) bool {
		// It may be done by now, and then nothing would wake us any more.
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		if n, err := unix.Poll(fds, 0); n == 0 || err != nil {
			return false
		}
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil {
			result = err
		} else if code != 0 {
			result = os.NewSyscallError("connect", unix.Errno(code))
		}
		return true
	})
	if !stop() && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	return result
}

func sockaddr(s Server) (unix.Sockaddr, error) {
	switch {
	case s.Network == "unix":
		return &unix.SockaddrUnix{Name: s.Host}, nil
	case s.Network != "tcp":
		return nil, fmt.Errorf("connect to %s: %w", s, ErrDialer)
	case s.Host == "localhost":
		return &unix.SockaddrInet4{Port: int(s.Port), Addr: [4]byte{127, 0, 0, 1}}, nil
	}
	addr, ok := parseIPv4(s.Host)
	if !ok {
		return nil, fmt.Errorf("connect to %s: %w", s, ErrDialer)
	}
	return &unix.SockaddrInet4{Port: int(s.Port), Addr: addr}, nil
}

// parseIPv4 reads four numbers with dots between them. Package netip, which
// could do it, takes some 20 µs of each start for its own beginning.
func parseIPv4(s string) (addr [4]byte, ok bool) {
	parts := strings.Split(s, ".")
	if len(parts) != len(addr) {
		return addr, false
	}
	for i, part := range parts {
		n, err := strconv.ParseUint(part, 10, 8)
		if err != nil || len(part) > 1 && part[0] == '0' {
			return addr, false
		}
		addr[i] = byte(n)
	}
	return addr, true
}
