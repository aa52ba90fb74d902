package client

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// fresh gives memory of size bytes with all of its pages there: a fault for each
// of them, while the kernel copies what has come, takes some three times as long. A
// kernel that cannot do so (before Linux 5.14) raises the faults.
func fresh(size int) []byte {
	p := make([]byte, size)
	_, _, _ = unix.RawSyscall(unix.SYS_MADVISE, uintptr(unsafe.Pointer(&p[0])), uintptr(size), unix.MADV_POPULATE_WRITE)
	return p
}
