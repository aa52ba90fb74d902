package proc

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// SameFile reports whether two descriptors, of one process or of two, share an
// open file description: offset, flags and all. The error is ENOSYS where the
// kernel has no kcmp(2).
func SameFile(pid1, fd1, pid2, fd2 int) (bool, error) {
	const kcmpFile = 0 // KCMP_FILE in <linux/kcmp.h>
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(pid1), uintptr(pid2), kcmpFile, uintptr(fd1), uintptr(fd2), 0)
	if errno != 0 {
		return false, fmt.Errorf("kcmp: %w", errno)
	}
	return r == 0, nil
}

// GetFD duplicates a descriptor of another process; the caller closes it. It
// needs the right to trace the process (Linux 5.6).
func GetFD(pid, fd int) (int, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, fmt.Errorf("pidfd_open %d: %w", pid, err)
	}
	defer unix.Close(pidfd)
	own, err := unix.PidfdGetfd(pidfd, fd, 0)
	if err != nil {
		return -1, fmt.Errorf("get descriptor %d of process %d: %w", fd, pid, err)
	}
	return own, nil
}

// CopyPipe gives the bytes that are in a pipe, of which fd of process pid is
// the read end, and the pipe's capacity. The pipe keeps its bytes. Nobody may
// read from it or write to it meanwhile.
func CopyPipe(pid, fd int) (data []byte, capacity uint64, err error) {
	own, err := GetFD(pid, fd)
	if err != nil {
		return nil, 0, err
	}
	defer unix.Close(own)
	size, err := unix.FcntlInt(uintptr(own), unix.F_GETPIPE_SZ, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("get the capacity of a pipe: %w", err)
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, 0, fmt.Errorf("make a pipe: %w", err)
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	if _, err := unix.FcntlInt(uintptr(p[1]), unix.F_SETPIPE_SZ, size); err != nil {
		return nil, 0, fmt.Errorf("make a pipe of %d bytes: %w", size, err)
	}
	// One call takes all: tee never advances in its source, and the copy has
	// as many slots.
	n, err := unix.Tee(own, p[1], size, unix.SPLICE_F_NONBLOCK)
	if errors.Is(err, unix.EAGAIN) {
		return nil, uint64(size), nil
	}
	if err != nil {
		return nil, 0, fmt.Errorf("copy the content of a pipe: %w", err)
	}
	data = make([]byte, n)
	for got := 0; got < len(data); {
		n, err := unix.Read(p[0], data[got:])
		if err != nil {
			return nil, 0, fmt.Errorf("read the copy of a pipe: %w", err)
		}
		got += n
	}
	return data, uint64(size), nil
}
