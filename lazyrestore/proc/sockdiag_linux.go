package proc

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// UnixSocket is what the kernel's socket diagnostics tell of a unix socket.
type UnixSocket struct {
	State    uint8  // a TCP_ state: unix.BPF_TCP_LISTEN, ...
	HasPeer  bool   // it is, or was, connected
	Peer     uint32 // inode of the other socket; 0: that is closed
	Shutdown uint8  // 1: it reads no more, 2: it writes no more
	FileIno  uint32 // of the file that it is bound to; 0: none
	RQueue   uint32 // listening: connections not accepted; else bytes not read
	WQueue   uint32 // listening: most such connections
}

const (
	sockDiagByFamily = 20 // SOCK_DIAG_BY_FAMILY
	showVFS          = 2  // UDIAG_SHOW_ flags of <linux/unix_diag.h>
	showPeer         = 4
	showQueues       = 16

	unixDiagVFS, unixDiagPeer, unixDiagQueues, unixDiagShutdown = 1, 2, 4, 6 // attributes
)

// ReadUnixSocket asks for the socket with inode ino in this network namespace.
// The error is unix.ENOENT where the kernel has no diagnostics of unix sockets.
func ReadUnixSocket(ino uint64) (UnixSocket, error) {
	fail := func(err error) (UnixSocket, error) {
		return UnixSocket{}, fmt.Errorf("ask for unix socket %d: %w", ino, err)
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(fd)
	ne := binary.NativeEndian
	req := make([]byte, unix.SizeofNlMsghdr+24) // struct unix_diag_req
	ne.PutUint32(req, uint32(len(req)))
	ne.PutUint16(req[4:], sockDiagByFamily)
	ne.PutUint16(req[6:], unix.NLM_F_REQUEST)
	body := req[unix.SizeofNlMsghdr:]
	body[0] = unix.AF_UNIX
	ne.PutUint32(body[4:], ^uint32(0)) // states
	ne.PutUint32(body[8:], uint32(ino))
	ne.PutUint32(body[12:], showVFS|showPeer|showQueues)
	ne.PutUint64(body[16:], ^uint64(0)) // no cookie
	if err := unix.Sendto(fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fail(err)
	}
	buf := make([]byte, 8192)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return fail(err)
	}
	s, err := parseUnixDiag(buf[:n])
	if err != nil {
		return fail(err)
	}
	return s, nil
}

// parseUnixDiag reads a reply: a netlink header, struct unix_diag_msg,
// attributes.
func parseUnixDiag(b []byte) (UnixSocket, error) {
	ne := binary.NativeEndian
	var s UnixSocket
	if len(b) < unix.SizeofNlMsghdr+16 {
		return s, unix.EBADMSG
	}
	if ne.Uint16(b[4:]) == unix.NLMSG_ERROR {
		return s, unix.Errno(-int32(ne.Uint32(b[unix.SizeofNlMsghdr:])))
	}
	b = b[:min(len(b), int(ne.Uint32(b)))]
	if len(b) < unix.SizeofNlMsghdr+16 {
		return s, unix.EBADMSG
	}
	s.State = b[unix.SizeofNlMsghdr+2]
	for b = b[unix.SizeofNlMsghdr+16:]; len(b) >= 4; {
		size, kind := int(ne.Uint16(b)), ne.Uint16(b[2:])
		if size < 4 || size > len(b) {
			return s, unix.EBADMSG
		}
		v := b[4:size]
		switch {
		case kind == unixDiagVFS && len(v) >= 8:
			s.FileIno = ne.Uint32(v)
		case kind == unixDiagPeer && len(v) >= 4:
			s.HasPeer, s.Peer = true, ne.Uint32(v)
		case kind == unixDiagQueues && len(v) >= 8:
			s.RQueue, s.WQueue = ne.Uint32(v), ne.Uint32(v[4:])
		case kind == unixDiagShutdown && len(v) >= 1:
			s.Shutdown = v[0]
		}
		b = b[min(len(b), (size+3)&^3):]
	}
	return s, nil
}
