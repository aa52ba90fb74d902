package uffd

import (
	"errors"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// OpenFlag changes how Open makes a descriptor.
type OpenFlag int

// The flags of Open.
const (
	// CloseOnExec closes the descriptor on execve(2).
	CloseOnExec OpenFlag = unix.O_CLOEXEC
	// NonBlock makes Read answer EAGAIN when nothing has happened. poll(2)
	// works only on a descriptor that has it: on one without, it answers
	// POLLERR at once.
	NonBlock OpenFlag = unix.O_NONBLOCK
	// UserModeOnly leaves faults that the kernel takes on a thread's behalf
	// (the buffer of a read(2), say) unhandled: they fail with EFAULT. In
	// return userfaultfd(2) needs no privilege. Linux 5.11.
	UserModeOnly OpenFlag = 1
)

// FD is one userfaultfd: the memory of one process, which is the one that
// opened it, or the child of a fork event. Its methods may be called
// concurrently, by any process that holds it, save that Close has to come
// after all others.
//
// Nothing closes it but Close. Closing the last reference to a userfaultfd
// unregisters its ranges: threads that wait go on and read zeros, and so does
// every page that was not there yet. No garbage collector decides that.
type FD struct {
	fd      atomic.Int32
	noblock bool // read cannot wait, so it need not tell the scheduler
}

// Open makes a userfaultfd for the calling process: through /dev/userfaultfd,
// whose file mode says who may, and where that fails through userfaultfd(2).
// Enable has to follow. The error is an *OpenError with both reasons.
func Open(flags OpenFlag) (*FD, error) {
	fd, devErr := openDevice(flags)
	if devErr != nil {
		var err error
		if fd, err = openSyscall(flags); err != nil {
			return nil, &OpenError{Device: devErr, Syscall: err}
		}
	}
	return newFD(fd, flags&NonBlock != 0), nil
}

// FromFD wraps a descriptor that came by other means: a fork event, a socket,
// pidfd_getfd(2), an inherited table. It takes ownership: Close closes it.
// Whether the descriptor blocks is read here, once; who holds it elsewhere
// must not clear O_NONBLOCK afterwards.
func FromFD(fd int) *FD {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	return newFD(fd, err == nil && flags&unix.O_NONBLOCK != 0)
}

func newFD(fd int, noblock bool) *FD {
	f := &FD{noblock: noblock}
	f.fd.Store(int32(fd))
	return f
}

// Fd is the descriptor's number, for poll(2) and the like; -1 once closed. f
// keeps owning it.
func (f *FD) Fd() int { return int(f.fd.Load()) }

// Close closes the descriptor. See FD for what the last one does to the
// memory. A second Close answers EBADF and closes nothing.
func (f *FD) Close() error {
	fd := f.fd.Swap(-1)
	if fd < 0 {
		return &Error{Op: "close", Errno: unix.EBADF}
	}
	if err := unix.Close(int(fd)); err != nil {
		return wrap("close", err)
	}
	return nil
}

// Info is what the kernel answered to Enable.
type Info struct {
	// Features is all that this kernel offers, enabled or not.
	Features Features
	// Ioctls is what may be done with the descriptor, as against with a range.
	Ioctls Ioctls
}

// Enable is the handshake (UFFDIO_API) that has to come first, and once, on a
// new descriptor; those of fork events have had it. The features in want are
// enabled.
//
// A kernel that lacks one gives a *NotSupportedError. An *Error otherwise:
// EPERM: FeatureEventFork without CAP_SYS_PTRACE (/dev/userfaultfd does not
// help); EINVAL: the handshake has been done already.
func (f *FD) Enable(want Features) (Info, error) {
	info, errno := f.api(want)
	if errno == 0 {
		return info, nil
	}
	if errno == unix.EINVAL {
		// The kernel does not say which feature it minded. Another
		// descriptor, asked for nothing, tells what there is.
		if have, err := offered(); err == nil && !have.Features.Has(want) {
			missing := want &^ have.Features
			return Info{}, &NotSupportedError{Feature: missing, Since: missing.Since()}
		}
	}
	return Info{}, &Error{Op: "enable " + want.String(), Errno: errno}
}

// offered is what this kernel offers, asked of a descriptor made for it.
func offered() (Info, error) {
	f, err := Open(CloseOnExec | UserModeOnly)
	if err != nil {
		f, err = Open(CloseOnExec) // before Linux 5.11 the flag is unknown
	}
	if err != nil {
		return Info{}, err
	}
	defer func() { _ = f.Close() }()
	info, errno := f.api(0)
	if errno != 0 {
		return Info{}, &Error{Op: "enable", Errno: errno}
	}
	return info, nil
}

// wrap makes an Error of an errno that came as an error.
func wrap(op string, err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return &Error{Op: op, Errno: errno}
	}
	return err
}
