//go:build amd64

package pager

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// archPrctl is arch_prctl(2) for requests that give a value.
func archPrctl(request int, value *uint64) unix.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_ARCH_PRCTL, uintptr(request), uintptr(unsafe.Pointer(value)), 0)
	return errno
}
