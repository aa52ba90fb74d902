package uffd

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ErrNoDescriptor means that a message on a socket brought no descriptor.
var ErrNoDescriptor = errors.New("no descriptor in the message")

// An Error is an operation that the kernel refused, or ended early.
type Error struct {
	// Op is the operation in the words of this package, such as "copy".
	Op string
	// Start and Length are the range that was asked for; both are zero for
	// what has no range. The range of copy and move is the destination.
	Start, Length uint64
	// Errno is why. Each method says what its values mean.
	Errno unix.Errno
}

// Error gives the operation, the range in hex, and the reason.
func (e *Error) Error() string {
	if e.Length == 0 && e.Start == 0 {
		return fmt.Sprintf("userfaultfd %s: %v", e.Op, e.Errno)
	}
	return fmt.Sprintf("userfaultfd %s %#x-%#x: %v", e.Op, e.Start, e.Start+e.Length, e.Errno)
}

// Unwrap gives the errno, so that errors.Is(err, unix.EEXIST) works.
func (e *Error) Unwrap() error { return e.Errno }

// NotSupportedError is a kernel that lacks what was asked for.
type NotSupportedError struct {
	// Feature is what is missing: one feature or several.
	Feature Features
	// Since is the first release of Linux that has all of it, such as "6.6",
	// or empty where this package does not know.
	Since string
}

// Error names what is missing and which Linux has it.
func (e *NotSupportedError) Error() string {
	if e.Since == "" {
		return fmt.Sprintf("userfaultfd feature %v: not supported by this kernel", e.Feature)
	}
	return fmt.Sprintf("userfaultfd feature %v: not supported by this kernel, Linux %s or newer is needed", e.Feature, e.Since)
}

// Is makes errors.Is(err, errors.ErrUnsupported) true.
func (e *NotSupportedError) Is(target error) bool { return target == errors.ErrUnsupported }

// OpenError says why neither way to a userfaultfd is open.
type OpenError struct {
	// Device is what /dev/userfaultfd answered. ENOENT: no such device (Linux
	// before 6.1, or a container without it); EACCES: its mode forbids it.
	Device error
	// Syscall is what userfaultfd(2) answered. EPERM: vm.unprivileged_userfaultfd
	// is 0 and the caller lacks CAP_SYS_PTRACE, or a seccomp filter denies it;
	// ENOSYS: a kernel without CONFIG_USERFAULTFD; EINVAL: an unknown flag
	// (UserModeOnly before Linux 5.11); EMFILE, ENFILE: too many descriptors.
	Syscall error
}

// Error gives both reasons.
func (e *OpenError) Error() string {
	return fmt.Sprintf("open a userfaultfd: /dev/userfaultfd: %v; userfaultfd(2): %v", e.Device, e.Syscall)
}

// Unwrap gives both reasons, the device's first.
func (e *OpenError) Unwrap() []error { return []error{e.Device, e.Syscall} }
