package lazypages

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// LockName is the name, in the work directory, of a file that the daemon there has locked, and that says its process id.
const LockName = "lazy-pages.lock"

// ErrServed is wrapped by the error about a work directory in which another daemon serves. Nothing is changed.
var ErrServed = errors.New("another daemon serves there")

// A Lock keeps other daemons out of a work directory: the socket, the state and what else is there are of one.
//
// It is of flock(2), by way of a file that is mapped and has no descriptor, which the keeper would have too: so it ends with
// this process.
type Lock struct {
	path string
	held []byte // nil if the file system has no locks
	err  error  // why not
}

// lockPatience is how long a daemon is waited for to end: one that was killed just now gives all its memory back.
const lockPatience = 2 * time.Second

// LockDir locks a work directory until Release, or until the process ends.
func LockDir(ctx context.Context, dir string) (*Lock, error) {
	l := &Lock{path: filepath.Join(dir, LockName)}
	for end := time.Now().Add(lockPatience); ; {
		err := l.try()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return l, err
		}
		if !time.Now().Before(end) {
			break
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	b, _ := os.ReadFile(l.path)
	who := strings.TrimSpace(string(b))
	if who == "" {
		who = "unknown"
	}
	return nil, fmt.Errorf("%s: %w, process %s", dir, ErrServed, who)
}

// try locks the file, with EWOULDBLOCK if another process has it locked.
func (l *Lock) try() error {
	for {
		fd, err := unix.Open(l.path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return &fs.PathError{Op: "open", Path: l.path, Err: err}
		}
		current, err := l.lock(fd)
		_ = unix.Close(fd)
		if err != nil || current {
			return err
		}
	}
}

// lock locks fd, if that is still the file: who had it before may have removed it meanwhile.
func (l *Lock) lock(fd int) (current bool, err error) {
	switch err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		return false, err
	case err != nil:
		l.err = os.NewSyscallError("flock", err)
		return true, nil
	}
	var here, there unix.Stat_t
	if err := unix.Fstat(fd, &here); err != nil {
		return false, os.NewSyscallError("fstat", err)
	}
	if err := unix.Lstat(l.path, &there); errors.Is(err, unix.ENOENT) || err == nil && (here.Dev != there.Dev || here.Ino != there.Ino) {
		return false, nil
	} else if err != nil {
		return false, &fs.PathError{Op: "lstat", Path: l.path, Err: err}
	}
	b, err := unix.Mmap(fd, 0, 1, unix.PROT_NONE, unix.MAP_PRIVATE)
	if err != nil {
		l.err = os.NewSyscallError("mmap", err)
		return true, nil
	}
	// Not even for a moment is it a child's, as a keeper is.
	err = os.NewSyscallError("madvise", unix.Madvise(b, unix.MADV_DONTFORK))
	if err == nil {
		err = os.NewSyscallError("ftruncate", unix.Ftruncate(fd, 0))
	}
	if err == nil {
		_, err = unix.Pwrite(fd, append(strconv.AppendInt(nil, int64(os.Getpid()), 10), '\n'), 0)
		err = os.NewSyscallError("pwrite", err)
	}
	if err != nil {
		_ = unix.Munmap(b)
		return false, fmt.Errorf("%s: %w", l.path, err)
	}
	l.held = b
	return true, nil
}

// Release removes the file, and lets others in. A second call does nothing.
func (l *Lock) Release() {
	if l.held == nil {
		return
	}
	_ = os.Remove(l.path) // who has it open already looks whether it is still there
	_ = unix.Munmap(l.held)
	l.held = nil
}
