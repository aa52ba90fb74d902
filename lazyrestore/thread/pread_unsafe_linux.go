package thread

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// PreadNow is preadv2(2) with RWF_NOWAIT: EAGAIN where the first byte is not
// in memory, a short count where a later one is not, EOPNOTSUPP where the file
// system cannot tell. p is not empty.
//
// Neither it nor PreadMemory tells Go's scheduler, for neither waits for a disk
// (but for memory that was swapped out): with many processes on a processor
// every call seems to last, and the thread that looks after calls then wakes
// each 20 µs. They do not allocate, which unix.Preadv2 does.
func PreadNow(fd int, p []byte, off int64) (int, unix.Errno) {
	iov := unix.Iovec{Base: &p[0]}
	iov.SetLen(len(p))
	n, _, errno := unix.RawSyscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(&iov)), 1,
		uintptr(off), 0, unix.RWF_NOWAIT)
	return int(n), errno
}

// PreadMemory is pread(2) of a file that is memory. p is not empty.
func PreadMemory(fd int, p []byte, off int64) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_PREAD64, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)),
		uintptr(off), 0, 0)
	return int(n), errno
}
