package native

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctlWord makes an ioctl that takes a pointer to a number of 64 bits.
func ioctlWord(fd int, request uintptr, word uint64) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(&word)))
	if errno != 0 {
		return errno
	}
	return nil
}
