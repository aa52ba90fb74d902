package proc

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// blockSignals blocks all signals of the calling thread, which has to be
// locked, and gives the mask that there was.
func blockSignals() (old uint64, err error) {
	all := ^uint64(0)
	return old, sigprocmask(&all, &old)
}

func setSignals(mask uint64) error { return sigprocmask(&mask, nil) }

func sigprocmask(set, old *uint64) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK,
		uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(old)), 8, 0, 0)
	if errno != 0 {
		return fmt.Errorf("set the signal mask: %w", errno)
	}
	return nil
}
