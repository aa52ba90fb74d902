package proc

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// MemoryError says at which address the memory of a process could not be read
// or written; what lies before it in the same call was transferred. Err is
// unix.EFAULT where nothing is mapped, or not so that it may be read or
// written, unix.ESRCH where the process is gone, unix.EPERM.
type MemoryError struct {
	Op   string // "read" or "write"
	PID  int
	Addr page.Addr
	Err  error
}

func (e *MemoryError) Error() string {
	return fmt.Sprintf("%s memory of process %d at %s: %v", e.Op, e.PID, e.Addr, e.Err)
}

func (e *MemoryError) Unwrap() error { return e.Err }

// A Transfer is a piece of a process's memory, and the bytes to read it into
// or write there.
type Transfer struct {
	Addr uint64
	Data []byte
}

// ReadMemory fills p from a process's memory at addr, as the process itself
// would read it: missing pages raise their faults. n is how much was read; it
// is less than len(p) only with an error, a *MemoryError.
func ReadMemory(pid int, addr uint64, p []byte) (n int, err error) {
	return ReadMemoryV(pid, []Transfer{{addr, p}})
}

// WriteMemory writes p into a process's memory at addr, as ReadMemory reads it.
func WriteMemory(pid int, addr uint64, p []byte) (n int, err error) {
	return WriteMemoryV(pid, []Transfer{{addr, p}})
}

// ReadMemoryV reads many pieces, one after the other, with few system calls. n
// is the sum of what was read.
func ReadMemoryV(pid int, pieces []Transfer) (n int, err error) {
	return transfer("read", unix.ProcessVMReadv, pid, pieces)
}

// WriteMemoryV writes many pieces as ReadMemoryV reads them.
func WriteMemoryV(pid int, pieces []Transfer) (n int, err error) {
	return transfer("write", unix.ProcessVMWritev, pid, pieces)
}

// maxVectors is how many pieces one call takes: UIO_MAXIOV.
const maxVectors = 1024

type vmCall func(pid int, local []unix.Iovec, remote []unix.RemoteIovec, flags uint) (int, error)

func transfer(op string, call vmCall, pid int, pieces []Transfer) (total int, err error) {
	var local []unix.Iovec
	var remote []unix.RemoteIovec
	skip := 0 // bytes of pieces[0] that are done
	for {
		for len(pieces) > 0 && skip == len(pieces[0].Data) {
			pieces, skip = pieces[1:], 0
		}
		if len(pieces) == 0 {
			return total, nil
		}
		local, remote = vectors(local[:0], remote[:0], pieces, skip)
		n, err := call(pid, local, remote, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = unix.EFAULT
		}
		if err != nil {
			at := page.Addr(pieces[0].Addr + uint64(skip))
			return total, &MemoryError{Op: op, PID: pid, Addr: at, Err: err}
		}
		total += n
		for n > 0 {
			step := min(n, len(pieces[0].Data)-skip)
			n, skip = n-step, skip+step
			if skip == len(pieces[0].Data) {
				pieces, skip = pieces[1:], 0
			}
		}
	}
}

// vectors describes pieces, less the first skip bytes, to the kernel.
func vectors(local []unix.Iovec, remote []unix.RemoteIovec, pieces []Transfer, skip int) ([]unix.Iovec, []unix.RemoteIovec) {
	for _, p := range pieces {
		if len(local) == maxVectors {
			break
		}
		data := p.Data[skip:]
		if len(data) > 0 {
			v := unix.Iovec{Base: &data[0]}
			v.SetLen(len(data))
			local = append(local, v)
			remote = append(remote, unix.RemoteIovec{Base: uintptr(p.Addr) + uintptr(skip), Len: len(data)})
		}
		skip = 0
	}
	return local, remote
}

// DataRanges calls f for each range of bytes of a file that holds data, in
// order, and leaves holes out. A file system that does not know holes has one
// range.
func DataRanges(path string, f func(start, end uint64) error) error {
	fd, err := open(path, unix.O_RDONLY)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd)
	for at := int64(0); ; {
		start, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // no more data
		}
		if err != nil {
			return fmt.Errorf("seek data in %s: %w", path, err)
		}
		if at, err = unix.Seek(fd, start, unix.SEEK_HOLE); err != nil {
			return fmt.Errorf("seek a hole in %s: %w", path, err)
		}
		if err := f(uint64(start), uint64(at)); err != nil {
			return err
		}
	}
}
