package native

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// Sockets that have nobody outside at their other end: pairs of unix sockets of
// which the process has both, or whose other end is closed, with what is queued
// in them; sockets that listen (TCP, unix); sockets that are not connected (TCP,
// UDP, unix), bound or not. All others are refused.

// A Socket is the description with index Open.
type Socket struct {
	Open     uint32
	Family   int
	Type     int
	Protocol int
	Name     []byte // struct sockaddr that it is bound to; empty: to none
	Listen   bool
	Backlog  uint64
	Pair     bool
	Peer     uint32 // 1 + index of the description of a pair's other end; 0: it is closed
	Shutdown uint64 // 1: it reads no more, 2: it writes no more
	Options  []SocketOption
	Queue    [][]byte // messages not read; of a stream one, of all that there is
	Mode     uint32   // of the file that a unix socket is bound to
	UID, GID uint32
}

// A SocketOption is one that differs from that of a new socket.
type SocketOption struct {
	Level, Name int
	Value       []byte
}

const (
	tcpListen, tcpClose = 10, 7 // TCP_LISTEN, TCP_CLOSE of <net/tcp_states.h>
	soGetFilter         = 26    // SO_GET_FILTER
)

// socketOptions are those that are kept, by the sockets that have them, in the order in
// which they are set again; the largest is a struct timeval, or a name of 16 bytes.
var socketOptions = [...]struct {
	level, name int
	family, typ int // 0: all
}{
	{unix.SOL_SOCKET, unix.SO_REUSEADDR, 0, 0},
	{unix.SOL_SOCKET, unix.SO_REUSEPORT, unix.AF_INET, 0},
	{unix.SOL_SOCKET, unix.SO_KEEPALIVE, unix.AF_INET, 0},
	{unix.SOL_SOCKET, unix.SO_BROADCAST, 0, 0},
	{unix.SOL_SOCKET, unix.SO_OOBINLINE, 0, 0},
	{unix.SOL_SOCKET, unix.SO_PASSCRED, unix.AF_UNIX, 0},
	{unix.SOL_SOCKET, unix.SO_PASSSEC, unix.AF_UNIX, 0},
	{unix.SOL_SOCKET, unix.SO_PASSPIDFD, unix.AF_UNIX, 0},
	{unix.SOL_SOCKET, unix.SO_PEEK_OFF, unix.AF_UNIX, 0},
	{unix.SOL_SOCKET, unix.SO_RCVLOWAT, 0, 0},
	{unix.SOL_SOCKET, unix.SO_PRIORITY, 0, 0},
	{unix.SOL_SOCKET, unix.SO_MARK, unix.AF_INET, 0},
	{unix.SOL_SOCKET, unix.SO_DONTROUTE, unix.AF_INET, 0},
	{unix.SOL_SOCKET, unix.SO_NO_CHECK, unix.AF_INET, unix.SOCK_DGRAM},
	{unix.SOL_SOCKET, unix.SO_TIMESTAMP_OLD, 0, 0},
	{unix.SOL_SOCKET, unix.SO_TIMESTAMPNS_OLD, 0, 0},
	{unix.SOL_SOCKET, unix.SO_TIMESTAMPING_OLD, 0, 0},
	{unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 0, 0},
	{unix.SOL_SOCKET, unix.SO_BUSY_POLL, unix.AF_INET, 0},
	{unix.SOL_SOCKET, unix.SO_PREFER_BUSY_POLL, unix.AF_INET, 0},
	{unix.SOL_SOCKET, unix.SO_ZEROCOPY, unix.AF_INET, 0},
	{unix.SOL_SOCKET, unix.SO_TXTIME, unix.AF_INET, unix.SOCK_DGRAM},
	{unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, unix.AF_INET, 0},
	{unix.SOL_SOCKET, unix.SO_TXREHASH, unix.AF_INET, unix.SOCK_STREAM},
	{unix.SOL_SOCKET, unix.SO_LINGER, 0, 0},
	{unix.SOL_SOCKET, unix.SO_RCVTIMEO, 0, 0},
	{unix.SOL_SOCKET, unix.SO_SNDTIMEO, 0, 0},
	{unix.SOL_SOCKET, unix.SO_RCVBUF, 0, 0},
	{unix.SOL_SOCKET, unix.SO_SNDBUF, 0, 0}, // the last: filling a queue changes it
	{unix.IPPROTO_IP, unix.IP_TOS, unix.AF_INET, 0},
	{unix.IPPROTO_IP, unix.IP_TTL, unix.AF_INET, 0},
	{unix.IPPROTO_IP, unix.IP_FREEBIND, unix.AF_INET, 0},
	{unix.IPPROTO_IP, unix.IP_TRANSPARENT, unix.AF_INET, 0},
	{unix.IPPROTO_IP, unix.IP_PKTINFO, unix.AF_INET, 0},
	{unix.IPPROTO_IP, unix.IP_RECVTTL, unix.AF_INET, 0},
	{unix.IPPROTO_IP, unix.IP_RECVTOS, unix.AF_INET, 0},
	{unix.IPPROTO_IP, unix.IP_RECVERR, unix.AF_INET, 0},
	{unix.IPPROTO_IP, unix.IP_RECVOPTS, unix.AF_INET, 0},
	{unix.IPPROTO_IP, unix.IP_RETOPTS, unix.AF_INET, 0},
	{unix.IPPROTO_IP, unix.IP_CHECKSUM, unix.AF_INET, unix.SOCK_DGRAM},
	{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.AF_INET, 0},
	{unix.IPPROTO_IP, unix.IP_MINTTL, unix.AF_INET, unix.SOCK_STREAM},
	{unix.IPPROTO_IP, unix.IP_RECVORIGDSTADDR, unix.AF_INET, 0},
	{unix.IPPROTO_IP, unix.IP_UNICAST_IF, unix.AF_INET, 0},
	{unix.IPPROTO_IP, unix.IP_LOCAL_PORT_RANGE, unix.AF_INET, 0},
	{unix.IPPROTO_IP, unix.IP_MULTICAST_IF, unix.AF_INET, unix.SOCK_DGRAM}, // the address, which the kernel finds the device by
	{unix.IPPROTO_IP, unix.IP_MULTICAST_TTL, unix.AF_INET, unix.SOCK_DGRAM},
	{unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, unix.AF_INET, unix.SOCK_DGRAM},
	{unix.IPPROTO_IP, unix.IP_MULTICAST_ALL, unix.AF_INET, unix.SOCK_DGRAM},
	{unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, unix.AF_INET, 0},
	{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, unix.AF_INET6, 0},
	{unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, unix.AF_INET6, 0},
	{unix.IPPROTO_IPV6, unix.IPV6_RECVORIGDSTADDR, unix.AF_INET6, 0},
	{unix.IPPROTO_IPV6, unix.IPV6_UNICAST_IF, unix.AF_INET6, 0},
	{unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, unix.AF_INET6, 0},
	{unix.IPPROTO_IPV6, unix.IPV6_MINHOPCOUNT, unix.AF_INET6, 0},
	{unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, unix.AF_INET6, unix.SOCK_DGRAM},
	{unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_ALL, unix.AF_INET6, unix.SOCK_DGRAM},
	{unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, unix.AF_INET6, unix.SOCK_DGRAM},
	{unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_LOOP, unix.AF_INET6, unix.SOCK_DGRAM},
	{unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, unix.AF_INET6, 0},
	{unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, unix.AF_INET6, 0},
	{unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, unix.AF_INET6, 0},
	{unix.IPPROTO_IPV6, unix.IPV6_RECVERR, unix.AF_INET6, 0},
	{unix.IPPROTO_IPV6, unix.IPV6_RECVHOPOPTS, unix.AF_INET6, 0},
	{unix.IPPROTO_IPV6, unix.IPV6_RECVRTHDR, unix.AF_INET6, 0},
	{unix.IPPROTO_IPV6, unix.IPV6_RECVDSTOPTS, unix.AF_INET6, 0},
	{unix.IPPROTO_IPV6, unix.IPV6_RECVPATHMTU, unix.AF_INET6, 0},
	{unix.IPPROTO_IPV6, unix.IPV6_RECVFRAGSIZE, unix.AF_INET6, 0},
	{unix.IPPROTO_IPV6, unix.IPV6_AUTOFLOWLABEL, unix.AF_INET6, 0},
	{unix.IPPROTO_IPV6, unix.IPV6_ADDR_PREFERENCES, unix.AF_INET6, 0},
	{unix.IPPROTO_IPV6, unix.IPV6_TCLASS, unix.AF_INET6, 0},
	{unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.AF_INET6, 0},
	{unix.IPPROTO_TCP, unix.TCP_NODELAY, unix.AF_INET, unix.SOCK_STREAM},
	{unix.IPPROTO_TCP, unix.TCP_CORK, unix.AF_INET, unix.SOCK_STREAM},
	{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, unix.AF_INET, unix.SOCK_STREAM},
	{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, unix.AF_INET, unix.SOCK_STREAM},
	{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, unix.AF_INET, unix.SOCK_STREAM},
	{unix.IPPROTO_TCP, unix.TCP_SYNCNT, unix.AF_INET, unix.SOCK_STREAM},
	{unix.IPPROTO_TCP, unix.TCP_LINGER2, unix.AF_INET, unix.SOCK_STREAM},
	{unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, unix.AF_INET, unix.SOCK_STREAM},
	{unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP, unix.AF_INET, unix.SOCK_STREAM},
	{unix.IPPROTO_TCP, unix.TCP_CONGESTION, unix.AF_INET, unix.SOCK_STREAM},
	{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, unix.AF_INET, unix.SOCK_STREAM},
	{unix.IPPROTO_TCP, unix.TCP_FASTOPEN, unix.AF_INET, unix.SOCK_STREAM},
	{unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unix.AF_INET, unix.SOCK_STREAM},
	{unix.IPPROTO_TCP, unix.TCP_INQ, unix.AF_INET, unix.SOCK_STREAM},
	{unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, unix.AF_INET, unix.SOCK_STREAM},
	{unix.IPPROTO_TCP, unix.TCP_FASTOPEN_NO_COOKIE, unix.AF_INET, unix.SOCK_STREAM},
	{unix.IPPROTO_TCP, unix.TCP_TX_DELAY, unix.AF_INET, unix.SOCK_STREAM},
	{unix.IPPROTO_TCP, unix.TCP_SAVE_SYN, unix.AF_INET, unix.SOCK_STREAM},
	{unix.IPPROTO_UDP, unix.UDP_CORK, unix.AF_INET, unix.SOCK_DGRAM},
	{unix.IPPROTO_UDP, unix.UDP_SEGMENT, unix.AF_INET, unix.SOCK_DGRAM},
	{unix.IPPROTO_UDP, unix.UDP_GRO, unix.AF_INET, unix.SOCK_DGRAM},
	{unix.SOL_SOCKET, unix.SO_BINDTODEVICE, unix.AF_INET, 0}, // behind all interfaces, of which a socket that is bound takes its own only
}

// has reports whether sockets of s's kind have an option of a family and type;
// those of IPv6 have all of IPv4's.
func (s *Socket) has(family, typ int) bool {
	return (typ == 0 || typ == s.Type) &&
		(family == 0 || family == s.Family || family == unix.AF_INET && s.Family == unix.AF_INET6)
}

// describeSocket tells a socket that can be had again from all others.
func (c *capture) describeSocket(d *descriptor, o *Open) error {
	o.Kind = OpenSocket
	s := Socket{Open: d.open}
	var why string
	err := c.withFD(d, func(fd int) (err error) {
		for _, v := range []struct {
			name int
			to   *int
		}{{unix.SO_DOMAIN, &s.Family}, {unix.SO_TYPE, &s.Type}, {unix.SO_PROTOCOL, &s.Protocol}} {
			if *v.to, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, v.name); err != nil {
				return err
			}
		}
		switch s.Family {
		case unix.AF_UNIX:
			why, err = c.unixSocket(d, &s, fd)
		case unix.AF_INET, unix.AF_INET6:
			why, err = inetSocket(&s, fd)
		default:
			why = fmt.Sprintf("sockets of this type (family %d) are not preserved", s.Family)
		}
		if err == nil && why == "" {
			why, err = s.options(fd)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("look at %v: %w", d, err)
	}
	if why != "" {
		c.describeStdio(d, o, why)
		return nil
	}
	c.st.Sockets = append(c.st.Sockets, s)
	return nil
}

const connected = "it is connected, to somebody who would know nothing of a restore"

func inetSocket(s *Socket, fd int) (why string, err error) {
	name, err := proc.SocketName(fd)
	if err != nil {
		return "", err
	}
	if len(name) > 2 && !allZero(name[2:]) { // an address or a port, which IP_BIND_ADDRESS_NO_PORT leaves to a connect
		s.Name = name
	}
	switch {
	case s.Type == unix.SOCK_STREAM && s.Protocol == unix.IPPROTO_TCP:
		return tcpSocket(s, fd)
	case s.Type == unix.SOCK_DGRAM && s.Protocol == unix.IPPROTO_UDP:
		return udpSocket(fd)
	case s.Type == unix.SOCK_STREAM && s.Protocol == unix.IPPROTO_MPTCP:
		return multipathSocket(s, fd)
	}
	return fmt.Sprintf("network sockets of this type (%d, protocol %d) are not preserved", s.Type, s.Protocol), nil
}

// multipathSocket looks at one of multipath TCP, as Go has them where it listens (net.Listen, Go
// 1.24): as long as nobody has connected to it there is no more of it than of one of TCP, and the kernel tells
// that of its first flow. One that does not listen tells too little of what it was.
func multipathSocket(s *Socket, fd int) (why string, err error) {
	if s.Family == unix.AF_INET6 {
		if _, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY); err != nil {
			return "this kernel does not tell whether this socket of multipath TCP takes IPv4 too", nil
		}
	}
	why, err = tcpSocket(s, fd)
	if err == nil && why == "" && !s.Listen {
		why = "sockets of multipath TCP are preserved where they listen only"
	}
	return why, err
}

func tcpSocket(s *Socket, fd int) (why string, err error) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return "", err
	}
	switch {
	case info.State == tcpListen && info.Unacked > 0:
		return fmt.Sprintf("%d connections were not accepted yet", info.Unacked), nil
	case info.State == tcpListen:
		s.Listen, s.Backlog = true, uint64(info.Sacked)
		return "", nil
	case info.State != tcpClose:
		return connected, nil
	}
	// One whose connection is over is in the state of one that had none.
	events, err := pollNow(fd)
	switch {
	case events&(unix.POLLERR|unix.POLLPRI) != 0:
		return unreadError, err
	case events&(unix.POLLIN|unix.POLLRDHUP) != 0:
		return "its connection has ended, or it was shut down, and what it has to tell of that would be lost", err
	}
	return "", err
}

const unreadError = "it has an error that was not read"

func udpSocket(fd int) (why string, err error) {
	if _, err := unix.Getpeername(fd); err == nil {
		return connected, nil
	}
	events, err := pollNow(fd)
	switch {
	case err != nil:
		return "", err
	case events&unix.POLLRDHUP != 0:
		return "it was shut down", nil
	case events&unix.POLLIN != 0:
		return "it has packets that were not read", nil
	case events&unix.POLLERR != 0:
		return unreadError, nil
	}
	unsent, err := unix.IoctlGetInt(fd, unix.TIOCOUTQ)
	if err != nil || unsent == 0 || !holdsBack(fd) {
		return "", err
	}
	return "it has a packet that was not sent (UDP_CORK, MSG_MORE)", nil
}

// holdsBack reports whether what a UDP socket has not sent is a packet that was begun. All else is
// on its way, be it that a neighbour's address is asked for: that goes out by itself, whatever
// becomes of the socket. The two are told apart by sending nothing to no port: to a packet that
// was begun that adds nothing, and where there is none it is not permitted.
func holdsBack(fd int) bool {
	var to unix.Sockaddr = &unix.SockaddrInet4{}
	if domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil || domain == unix.AF_INET6 {
		to = &unix.SockaddrInet6{}
	}
	return !errors.Is(unix.Sendto(fd, nil, unix.MSG_MORE|unix.MSG_DONTWAIT, to), unix.EINVAL)
}

// pollNow asks what a socket has to tell now.
func pollNow(fd int) (events int16, err error) {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLRDHUP | unix.POLLPRI}}
	for {
		if _, err = unix.Poll(p, 0); !errors.Is(err, unix.EINTR) {
			return p[0].Revents, err
		}
	}
}

// unixSocket looks at a unix socket. A pair is found from both its ends.
func (c *capture) unixSocket(d *descriptor, s *Socket, fd int) (why string, err error) {
	diag, err := proc.ReadUnixSocket(d.stat.Ino)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return "this kernel does not tell what it is connected to (unix_diag)", nil
	}
	if err != nil {
		return "", err
	}
	if why, err = c.unixName(s, fd, &diag); why != "" || err != nil {
		return why, err
	}
	s.Shutdown = uint64(diag.Shutdown)
	switch {
	case diag.State == tcpListen && diag.RQueue > 0:
		return fmt.Sprintf("%d connections were not accepted yet", diag.RQueue), nil
	case diag.State == tcpListen:
		s.Listen, s.Backlog = true, uint64(diag.WQueue)
		return "", nil
	case !diag.HasPeer:
		return unreadMessages(s, fd)
	}
	s.Pair = true
	var peer *descriptor
	if diag.Peer != 0 {
		i := slices.IndexFunc(c.fds.list, func(e descriptor) bool {
			return e.stat.Mode&unix.S_IFMT == unix.S_IFSOCK && uint32(e.stat.Ino) == diag.Peer
		})
		if i < 0 {
			return "its other end is in another process", nil
		}
		back, err := proc.ReadUnixSocket(uint64(diag.Peer))
		if err != nil {
			return "", err
		}
		if back.Peer != uint32(d.stat.Ino) {
			return "what it is connected to is not connected to it", nil
		}
		peer = c.fds.list[i].first
		c.pairs = append(c.pairs, [2]*descriptor{d, peer})
	}
	if len(s.Name) > 0 || diag.FileIno != 0 {
		return "it is connected, and has a name", nil
	}
	if s.Queue, why, err = unixQueue(s, fd); why != "" || err != nil || len(s.Queue) == 0 || peer == nil || s.Type == unix.SOCK_STREAM {
		return why, err
	}
	err = c.withFD(peer, func(sender int) (err error) {
		why, err = wholeQueue(s, sender)
		return err
	})
	return why, err
}

// notePairs notes the other ends, when all is described.
func (c *capture) notePairs() {
	for _, p := range c.pairs {
		if s := c.st.socket(p[0].open); s != nil {
			s.Peer = p[1].open + 1
		}
	}
}

// socket finds the socket of a description.
func (st *State) socket(open uint32) *Socket {
	i, ok := slices.BinarySearchFunc(st.Sockets, open, func(s Socket, open uint32) int { return int(s.Open) - int(open) })
	if !ok {
		return nil
	}
	return &st.Sockets[i]
}

// unixName notes the name of a unix socket: a path, or an abstract one.
func (c *capture) unixName(s *Socket, fd int, diag *proc.UnixSocket) (why string, err error) {
	name, err := proc.SocketName(fd)
	if err != nil || len(name) <= 2 {
		return "", err
	}
	s.Name = name
	if name[2] == 0 {
		return "", nil
	}
	path := s.path()
	var st unix.Stat_t
	switch err := unix.Lstat(path, &st); {
	case !filepath.IsAbs(path):
		return "the path that it is bound to is relative", nil
	case err != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK || uint32(st.Ino) != diag.FileIno:
		return "the path that it is bound to does not lead to it any more", nil
	}
	s.Mode, s.UID, s.GID = st.Mode&0o7777, st.Uid, st.Gid
	return "", nil
}

// path is that of a unix socket's name; "" where it has another, or none.
func (s *Socket) path() string {
	if s.Family != unix.AF_UNIX || len(s.Name) <= 2 {
		return ""
	}
	path, _, _ := bytes.Cut(s.Name[2:], []byte{0})
	return string(path)
}

// options notes what differs from a new socket.
func (s *Socket) options(fd int) (why string, err error) {
	buf := make([]byte, 64)
	if b, err := proc.SocketOption(fd, unix.SOL_SOCKET, unix.SO_LOCK_FILTER, buf); err == nil && !allZero(b) {
		return "its filter is locked", nil
	}
	if n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, soGetFilter); err == nil && n > 0 {
		return "it has a packet filter", nil
	}
	fresh, err := unix.Socket(s.Family, s.Type|unix.SOCK_CLOEXEC, s.Protocol)
	if err != nil {
		return "", err
	}
	defer unix.Close(fresh)
	usual := make([]byte, len(buf))
	for i := range socketOptions {
		opt := &socketOptions[i]
		if !s.has(opt.family, opt.typ) {
			continue
		}
		have, err := proc.SocketOption(fd, opt.level, opt.name, buf)
		if err != nil {
			continue // not of this kernel
		}
		want, err := proc.SocketOption(fresh, opt.level, opt.name, usual)
		if err != nil {
			return "", err
		}
		if !bytes.Equal(have, want) {
			s.Options = append(s.Options, SocketOption{opt.level, opt.name, slices.Clone(have)})
		}
	}
	// A value may be one that cannot be set, as the address of an interface that has lost it.
	// What needs a privilege another may do, who restores.
	for i := range s.Options {
		if err := s.Options[i].set(fresh); err != nil && !errors.Is(err, unix.EPERM) {
			return fmt.Sprintf("a restore could not %v", err), nil
		}
	}
	return "", nil
}

func (st *State) validSockets() error {
	last := -1
	for i := range st.Sockets {
		s := &st.Sockets[i]
		switch {
		case int64(s.Open) >= int64(len(st.Opens)) || int(s.Open) <= last || st.Opens[s.Open].Kind != OpenSocket,
			s.Pair && s.Family != unix.AF_UNIX, uint64(s.Peer) > uint64(len(st.Opens)),
			len(s.Name) == 1 || len(s.Name) > 128 || s.Backlog > 1<<31-1,
			len(s.Queue) > 0 && !s.Pair:
			return fmt.Errorf("a socket of description %d", s.Open)
		}
		last = int(s.Open)
	}
	return nil
}
