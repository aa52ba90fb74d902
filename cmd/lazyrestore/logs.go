package main

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// keepLog is how long a log stays that nobody writes to: its process may have ended, and
// an image of it may name the log as its standard output.
const keepLog = 7 * 24 * time.Hour

// nameLog gives a log the name by which it is found, whatever has that.
func nameLog(log string, pid int) error {
	dir := filepath.Dir(log)
	held, err := holdLogs(dir)
	if err != nil {
		return err
	}
	defer held.Close()
	return os.Rename(log, filepath.Join(dir, strconv.Itoa(pid)+".log"))
}

// holdLogs keeps others from naming and sweeping logs until what it returns is closed.
func holdLogs(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, &os.PathError{Op: "lock", Path: dir, Err: err}
	}
	return f, nil
}

// sweepLogs removes the logs of detached restores whose processes have ended, which
// nobody else does: a process may write to its log when its pager has left.
func sweepLogs(dir string) {
	held, err := holdLogs(dir)
	if err != nil {
		return
	}
	defer held.Close()
	names, _ := held.Readdirnames(-1)
	for _, name := range names {
		if abandoned(name) && unused(filepath.Join(dir, name)) {
			os.Remove(filepath.Join(dir, name))
		}
	}
}

// abandoned reports whether a name is that of a log, restore-NUMBER.log before its
// process runs and PID.log then, and there is no such process here.
func abandoned(name string) bool {
	name, ok := strings.CutSuffix(name, ".log")
	number, unnamed := strings.CutPrefix(name, "restore-")
	n, err := strconv.ParseUint(number, 10, 32)
	return ok && err == nil && (unnamed || errors.Is(unix.Kill(int(n), 0), unix.ESRCH))
}

// unused reports whether a log has long not been written to, and nobody can: the kernel
// gives no lease for reading where anyone, in whatever namespace, has it open for writing.
func unused(path string) bool {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close() // and the lease
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || time.Since(info.ModTime()) < keepLog {
		return false
	}
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	return err == nil
}
