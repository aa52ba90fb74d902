package thread

import (
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// See <linux/futex.h>.
const (
	futexWait    = 0
	futexWake    = 1
	futexPrivate = 0x80
)

// SleepWhile has the calling thread sleep as long as word is value, and nobody wakes it, but no
// longer than d (futex(2)). Go's scheduler is not told: d is to be short.
func SleepWhile(word *atomic.Uint32, value uint32, d time.Duration) {
	t := unix.NsecToTimespec(int64(d))
	_, _, _ = unix.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexWait|futexPrivate, uintptr(value),
		uintptr(unsafe.Pointer(&t)), 0, 0)
}

// Wake wakes the thread that sleeps while word is what it was.
func Wake(word *atomic.Uint32) {
	_, _, _ = unix.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexWake|futexPrivate, 1, 0, 0, 0)
}
