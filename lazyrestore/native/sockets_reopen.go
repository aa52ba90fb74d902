package native

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// socket makes the socket of a description anew.
func (r *reopener) socket(o *Open, index int) (int, error) {
	s := r.st.socket(uint32(index))
	if s == nil {
		return -1, fmt.Errorf("%w: a socket without its state", errState)
	}
	fd, err := r.newSocket(s)
	if fd < 0 || err != nil {
		return fd, err
	}
	if o.Flags&unix.O_NONBLOCK != 0 {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, unix.O_NONBLOCK)
	}
	return fd, err
}

func (r *reopener) newSocket(s *Socket) (int, error) {
	if s.Pair {
		return r.socketPair(s)
	}
	fd, err := r.raiseNew(unix.Socket(s.Family, s.Type, s.Protocol))
	if err != nil {
		return -1, fmt.Errorf("make a socket: %w", err)
	}
	if ok, err := r.setOptions(s, fd); !ok || err != nil {
		return -1, err
	}
	if len(s.Name) > 0 {
		if ok, err := r.bind(s, fd); !ok || err != nil {
			return -1, err
		}
	}
	if s.Listen && (!r.check || s.path() == "") {
		if err := unix.Listen(fd, int(s.Backlog)); err != nil {
			r.refused.add(s.name(), "listen: "+err.Error(), "end whoever listens there")
			return -1, nil
		}
	}
	if s.Shutdown != 0 {
		if err := unix.Shutdown(fd, int(s.Shutdown)-1); err != nil {
			return -1, fmt.Errorf("shut a socket down: %w", err)
		}
	}
	return fd, nil
}

// socketPair makes both ends of a pair when the first is asked for.
func (r *reopener) socketPair(s *Socket) (int, error) {
	if fd, made := r.sockets[s.Open]; made {
		return fd, nil
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, s.Type, s.Protocol)
	if err != nil {
		return -1, fmt.Errorf("make a pair of sockets: %w", err)
	}
	for i := range fds {
		if fds[i], err = r.raise(fds[i]); err != nil {
			if i == 0 {
				unix.Close(fds[1])
			}
			return -1, err
		}
	}
	ends := []*Socket{s, nil}
	if s.Peer != 0 {
		if ends[1] = r.st.socket(s.Peer - 1); ends[1] == nil || ends[1].Peer != s.Open+1 {
			return -1, fmt.Errorf("%w: the sockets of a pair do not know each other", errState)
		}
	}
	for i, end := range ends {
		if end == nil {
			continue
		}
		why, err := fillSocket(fds[1-i], end.Queue)
		if err != nil {
			return -1, err
		}
		if why != "" {
			r.refused.add(end.name(), why, "restore it as root, with CAP_NET_ADMIN, or with larger net.core.wmem_max and net.unix.max_dgram_qlen")
			return -1, nil
		}
	}
	for i, end := range ends {
		if end == nil {
			r.giveUp(fds[i])
			continue
		}
		if ok, err := r.setOptions(end, fds[i]); !ok || err != nil {
			return -1, err
		}
		// The other end of one that is closed has been shut down by that.
		if end.Shutdown != 0 && end.Peer != 0 {
			if err := unix.Shutdown(fds[i], int(end.Shutdown)-1); err != nil {
				return -1, fmt.Errorf("shut a socket down: %w", err)
			}
		}
		if r.sockets == nil {
			r.sockets = make(map[uint32]int)
		}
		r.sockets[end.Open] = fds[i]
	}
	return fds[0], nil
}

// giveUp closes a descriptor that the process is not to inherit.
func (r *reopener) giveUp(fd int) {
	for i, owned := range r.owned {
		if owned == fd {
			r.owned = append(r.owned[:i], r.owned[i+1:]...)
			break
		}
	}
	unix.Close(fd)
}

// fillSocket sends what was queued at the other end, and says why that cannot be. Its own
// buffer is enlarged for that, and is usual or as saved afterwards.
func fillSocket(fd int, queue [][]byte) (why string, err error) {
	if len(queue) == 0 {
		return "", nil
	}
	usual, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	if err != nil {
		return "", err
	}
	size := 1 << 20
	for _, m := range queue {
		size += 2*len(m) + 4096
	}
	if err := setBuffer(fd, unix.SO_SNDBUF, size); err != nil {
		return "", fmt.Errorf("enlarge the buffer of a socket: %w", err)
	}
	for i, m := range queue {
		for sent := 0; ; {
			n, err := unix.SendmsgN(fd, m[sent:], nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EMSGSIZE) {
				return fmt.Sprintf("message %d of %d that were queued in it, %d bytes, does not go into the buffer that may be had here", i+1, len(queue), len(m)), nil
			}
			if err != nil {
				return "", fmt.Errorf("put %d bytes back into a socket: %w", len(m), err)
			}
			if sent += n; sent >= len(m) {
				break
			}
		}
	}
	return "", setBuffer(fd, unix.SO_SNDBUF, usual/2) // the kernel doubles it
}

// setBuffer sets SO_SNDBUF or SO_RCVBUF: without CAP_NET_ADMIN to no more than
// net.core.wmem_max, or rmem_max, allows.
func setBuffer(fd, name, bytes int) error {
	force := map[int]int{unix.SO_RCVBUF: unix.SO_RCVBUFFORCE, unix.SO_SNDBUF: unix.SO_SNDBUFFORCE}[name]
	err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, bytes)
	if errors.Is(err, unix.EPERM) {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, name, bytes)
	}
	return err
}

// setOptions refuses a socket that goes by an interface that is not there.
func (r *reopener) setOptions(s *Socket, fd int) (ok bool, err error) {
	for i := range s.Options {
		o := &s.Options[i]
		err := o.set(fd)
		switch {
		case err == nil && o.isBuffer():
			if is, err := unix.GetsockoptInt(fd, o.Level, o.Name); err == nil && is < o.number() {
				r.warnings = append(r.warnings, fmt.Sprintf("%s has a buffer of %d bytes instead of %d: more takes CAP_NET_ADMIN, or a larger net.core.wmem_max or rmem_max", s.name(), is, o.number()))
			}
		case err == nil:
		case o.isInterface() && (errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL)):
			r.refused.add(s.name(), err.Error(), "give this machine the address or the device")
			return false, nil
		default:
			return false, err
		}
	}
	return true, nil
}

// isInterface reports whether an option names an interface, or an address of one.
func (o *SocketOption) isInterface() bool {
	switch o.Level {
	case unix.SOL_SOCKET:
		return o.Name == unix.SO_BINDTODEVICE
	case unix.IPPROTO_IP:
		return o.Name == unix.IP_MULTICAST_IF || o.Name == unix.IP_UNICAST_IF
	case unix.IPPROTO_IPV6:
		return o.Name == unix.IPV6_MULTICAST_IF || o.Name == unix.IPV6_UNICAST_IF
	}
	return false
}

// isBuffer reports whether an option is the size of a buffer.
func (o *SocketOption) isBuffer() bool {
	return o.Level == unix.SOL_SOCKET && len(o.Value) == 4 && (o.Name == unix.SO_RCVBUF || o.Name == unix.SO_SNDBUF)
}

// number is the value of an option of four bytes.
func (o *SocketOption) number() int { return int(int32(binary.NativeEndian.Uint32(o.Value))) }

// set sets the option of a new socket.
func (o *SocketOption) set(fd int) error {
	var err error
	if o.isBuffer() {
		err = setBuffer(fd, o.Name, o.number()/2) // the kernel doubles it
	} else {
		err = unix.SetsockoptString(fd, o.Level, o.Name, string(o.Value))
	}
	if err != nil {
		return fmt.Errorf("set option %d of level %d of a socket: %w", o.Name, o.Level, err)
	}
	return nil
}

// bind binds a socket to its name. The file that a unix socket has left behind
// is taken away, if nobody listens there; one that takes its place is left where the
// restore fails, as that was, for nobody listens there then.
func (r *reopener) bind(s *Socket, fd int) (ok bool, err error) {
	path, was := s.path(), false
	if path != "" {
		var why string
		if was, why = leftBehind(path, s.Type); why != "" {
			r.refused.add(s.name(), why, "end whoever listens there, or remove it")
			return false, nil
		}
		if r.check {
			return r.mayBind(s), nil
		}
		if was {
			if err := os.Remove(path); err != nil {
				r.refused.add(s.name(), err.Error(), "remove it")
				return false, nil
			}
		}
	}
	if err := s.bindName(fd); err != nil {
		r.refused.add(s.name(), "bind: "+err.Error(), "end whoever has the address")
		return false, nil
	}
	if path == "" {
		return true, nil
	}
	if !was {
		r.made = append(r.made, path)
	}
	if err := os.Chmod(path, os.FileMode(s.Mode)); err != nil {
		return false, err
	}
	err = os.Lchown(path, int(s.UID), int(s.GID)) // as giveAway does
	if err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EINVAL) {
		return false, err
	}
	return true, nil
}

// bindName binds a socket that has an address and no port without one, though the
// option that is for that may have been taken back.
func (s *Socket) bindName(fd int) error {
	if s.Family == unix.AF_UNIX || s.port() != 0 {
		return proc.BindName(fd, s.Name)
	}
	const option = unix.IP_BIND_ADDRESS_NO_PORT
	was, err := unix.GetsockoptInt(fd, unix.IPPROTO_IP, option)
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, option, 1); err != nil {
		return err
	}
	return errors.Join(proc.BindName(fd, s.Name), unix.SetsockoptInt(fd, unix.IPPROTO_IP, option, was))
}

// port is that of a network socket's name, 0 where it has none.
func (s *Socket) port() int {
	if len(s.Name) < 4 {
		return 0
	}
	return int(binary.BigEndian.Uint16(s.Name[2:]))
}

// mayBind refuses a socket whose file could not be made.
func (r *reopener) mayBind(s *Socket) bool {
	err := unix.Access(filepath.Dir(s.path()), unix.W_OK|unix.X_OK)
	if err != nil {
		r.refused.add(s.name(), "bind: "+err.Error(), "make the directory that it was in")
	}
	return err == nil
}

// leftBehind reports whether there is a socket's file that nobody listens at, and says
// why a socket cannot have the path.
func leftBehind(path string, typ int) (was bool, why string) {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	switch {
	case errors.Is(err, unix.ENOENT):
		return false, ""
	case err != nil:
		return false, err.Error()
	case st.Mode&unix.S_IFMT != unix.S_IFSOCK:
		return false, "something that is no socket has its path"
	}
	fd, err := unix.Socket(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return false, err.Error()
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); !errors.Is(err, unix.ECONNREFUSED) {
		return false, "somebody has it"
	}
	return true, ""
}

// name is how a socket is called in a refusal.
func (s *Socket) name() string {
	switch {
	case s.path() != "":
		return "socket " + s.path()
	case s.Family == unix.AF_UNIX && len(s.Name) > 3:
		return "socket @" + string(s.Name[3:])
	case s.Family != unix.AF_UNIX && s.port() != 0:
		return fmt.Sprintf("socket of port %d", s.port())
	}
	return "socket"
}
