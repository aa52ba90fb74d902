package proc

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// A Resource is something that processes or threads can have in common: a
// KCMP_ constant of <linux/kcmp.h>.
type Resource int

// Resources that SameResource compares.
const (
	ResourceMemory Resource = 1 // KCMP_VM: the address space
	ResourceFiles  Resource = 2 // KCMP_FILES: the table of descriptors
	ResourceFS     Resource = 3 // KCMP_FS: directories and umask
)

const (
	kcmpFile     = 0
	kcmpEpollTFD = 7
)

// kcmp gives the order of two of the kernel's objects: -1, 0 where they are
// one, 1. The order holds as long as they live.
func kcmp(pid1, pid2 int, kind, a, b uintptr) (int, error) {
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(pid1), uintptr(pid2), kind, a, b, 0)
	switch {
	case errno != 0:
		return 0, errno
	case r == 0:
		return 0, nil
	case r == 1:
		return -1, nil
	case r == 2:
		return 1, nil
	}
	return 0, fmt.Errorf("kcmp gives no order: %d", r)
}

// CompareFiles gives the order of the open file descriptions that two
// descriptors, each of a process, refer to: 0 where they are one, so that they
// share offset and flags, else -1 or 1, in an order that holds as long as both
// are open. The error is unix.ENOSYS where the kernel has no kcmp(2).
func CompareFiles(pid1, fd1, pid2, fd2 int) (int, error) {
	order, err := kcmp(pid1, pid2, kcmpFile, uintptr(fd1), uintptr(fd2))
	if err != nil {
		return 0, fmt.Errorf("compare descriptor %d of process %d with %d of %d: %w", fd1, pid1, fd2, pid2, err)
	}
	return order, nil
}

// SameResource reports whether two processes or threads have a resource in
// common.
func SameResource(tid1, tid2 int, kind Resource) (bool, error) {
	order, err := kcmp(tid1, tid2, uintptr(kind), 0, 0)
	if err != nil {
		return false, fmt.Errorf("compare tasks %d and %d: %w", tid1, tid2, err)
	}
	return order == 0, nil
}
