package store

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// preadNow is preadv2(2) with RWF_NOWAIT: EAGAIN where the first byte is not
// in memory, a short count where a later one is not, EOPNOTSUPP where the file
// system cannot tell. p is not empty. It does not allocate, which unix.Preadv2
// does.
func preadNow(fd int, p []byte, off int64) (int, unix.Errno) {
	iov := unix.Iovec{Base: &p[0]}
	iov.SetLen(len(p))
	n, _, errno := unix.Syscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(&iov)), 1,
		uintptr(off), 0, unix.RWF_NOWAIT)
	return int(n), errno
}
