package thread

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Processor is the one that the calling thread is on, or was a moment ago; -1: unknown.
func Processor() int {
	var cpu uint32
	if _, _, errno := unix.RawSyscall(unix.SYS_GETCPU, uintptr(unsafe.Pointer(&cpu)), 0, 0); errno != 0 {
		return -1
	}
	return int(cpu)
}
