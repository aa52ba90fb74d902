package proc

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// SocketOption is getsockopt(2) as bytes: it fills buf, and gives as much of it
// as the option has.
func SocketOption(fd, level, name int, buf []byte) ([]byte, error) {
	n := uint32(len(buf))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&n)), 0)
	if errno != 0 {
		return nil, errno
	}
	return buf[:min(int(n), len(buf))], nil
}

// SocketName is getsockname(2) as the bytes of a struct sockaddr.
func SocketName(fd int) ([]byte, error) {
	buf := make([]byte, 128) // struct sockaddr_storage
	n := uint32(len(buf))
	_, _, errno := unix.Syscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&n)))
	if errno != 0 {
		return nil, errno
	}
	return buf[:min(int(n), len(buf))], nil
}

// BindName is bind(2) to the bytes of a struct sockaddr.
func BindName(fd int, name []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&name[0])), uintptr(len(name)))
	if errno != 0 {
		return errno
	}
	return nil
}
