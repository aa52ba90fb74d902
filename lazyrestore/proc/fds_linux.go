package proc

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// GetFD makes a descriptor of ours that refers to what a process's descriptor
// refers to, the same open file description. The caller closes it; it is
// close-on-exec.
func GetFD(pid, fd int) (int, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		if goneError(err) {
			err = ErrNoProcess
		}
		return -1, fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(pidfd)
	got, err := unix.PidfdGetfd(pidfd, fd, 0)
	if err != nil {
		return -1, fmt.Errorf("get descriptor %d of process %d: %w", fd, pid, err)
	}
	return got, nil
}

// CopyPipe gives what is in a pipe, of whose read end from is a descriptor of
// ours, and leaves it there; size is the pipe's capacity in bytes. Nobody may
// read or write the pipe meanwhile.
func CopyPipe(from int) (data []byte, size uint64, err error) {
	fail := func(what string, err error) ([]byte, uint64, error) {
		return nil, 0, fmt.Errorf("%s pipe: %w", what, err)
	}
	room, err := unix.FcntlInt(uintptr(from), unix.F_GETPIPE_SZ, 0)
	if err != nil {
		return fail("get the capacity of a", err)
	}
	n, err := unix.IoctlGetInt(from, unix.TIOCINQ)
	if err != nil {
		return fail("get the fill of a", err)
	}
	if n == 0 {
		return nil, uint64(room), nil
	}
	var to [2]int
	if err := unix.Pipe2(to[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return fail("make a copy of a", err)
	}
	defer unix.Close(to[0])
	defer unix.Close(to[1])
	// A pipe counts in pages, some of which may hold a few bytes only: the
	// copy needs as many of them.
	if _, err := unix.FcntlInt(uintptr(to[1]), unix.F_SETPIPE_SZ, room); err != nil {
		return fail("size a copy of a", err)
	}
	if data, err = teePipe(from, to, n); err != nil {
		return fail("copy a", err)
	}
	return data, uint64(room), nil
}

func teePipe(from int, to [2]int, n int) ([]byte, error) {
	got, err := unix.Tee(from, to[1], n, unix.SPLICE_F_NONBLOCK)
	if err != nil {
		return nil, err
	}
	if got != int64(n) {
		return nil, fmt.Errorf("%d of %d bytes", got, n)
	}
	data := make([]byte, n)
	for off := 0; off < n; {
		r, err := unix.Read(to[0], data[off:])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, err
		case r == 0:
			return nil, errors.New("the copy is short")
		default:
			off += r
		}
	}
	return data, nil
}
