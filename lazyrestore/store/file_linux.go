package store

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// writebackStep is how many bytes are written before the kernel is asked to
// start putting them on the disk: the sync at the end then finds little to do.
const writebackStep = 32 << 20

// A file is an object being written. Its descriptor stays open until the image
// is committed or aborted: an error of writing back shows in the fsync of a
// descriptor that was open when it happened.
type file struct {
	path    string // the final one
	fd      int
	size    int64
	started int64 // up to where writing back has been started
	closed  bool
}

// Write appends p. The error is an *fs.PathError, and says how far it came.
func (f *file) Write(p []byte) (int, error) {
	if f.closed {
		return 0, &fs.PathError{Op: "write", Path: f.path, Err: fs.ErrClosed}
	}
	done := 0
	for done < len(p) {
		n, err := unix.Write(f.fd, p[done:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = unix.EIO
		}
		if err != nil {
			err = fmt.Errorf("%w (%d bytes written)", err, f.size)
			return done, &fs.PathError{Op: "write", Path: f.path, Err: err}
		}
		done += n
		f.size += int64(n)
	}
	if f.size-f.started >= writebackStep {
		// Only a hint: what goes wrong here shows in fsync.
		_ = unix.SyncFileRange(f.fd, f.started, f.size-f.started, unix.SYNC_FILE_RANGE_WRITE)
		f.started = f.size
	}
	return done, nil
}

// Close ends the object.
func (f *file) Close() error {
	if f.closed {
		return &fs.PathError{Op: "close", Path: f.path, Err: fs.ErrClosed}
	}
	f.closed = true
	_ = unix.SyncFileRange(f.fd, f.started, 0, unix.SYNC_FILE_RANGE_WRITE) // as in Write
	return nil
}

// sync makes the object durable and lets its descriptor go.
func (f *file) sync() error {
	var err error
	if !f.closed {
		err = errNotEnded
	} else {
		err = fsync(f.fd)
	}
	if err = errors.Join(err, f.release()); err != nil {
		return &fs.PathError{Op: "sync", Path: f.path, Err: err}
	}
	return nil
}

// release closes the descriptor.
func (f *file) release() error {
	f.closed = true
	if f.fd < 0 {
		return nil
	}
	err := unix.Close(f.fd)
	f.fd = -1
	return err
}
