package native

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// memoryMode is the mode of the calling thread's NUMA memory policy.
func memoryMode() (uint64, error) {
	var mode int32
	_, _, errno := unix.RawSyscall6(unix.SYS_GET_MEMPOLICY, uintptr(unsafe.Pointer(&mode)), 0, 0, 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return uint64(uint32(mode)), nil
}
