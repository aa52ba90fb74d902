package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// tmpPrefix is how the name of a directory starts in which the image name is
// being written.
func tmpPrefix(name string) string { return "." + name + ".tmp-" }

// lockDir opens the directory name and locks it. The error is EWOULDBLOCK
// where somebody else has it, ENOENT where it is gone. On a file system
// without locks the directory is opened all the same: nobody can then take it
// for a leftover, either.
func lockDir(parent int, name string) (int, error) {
	fd, err := openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return -1, err
	}
	if err := flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil && errors.Is(err, unix.EWOULDBLOCK) {
		return -1, errors.Join(err, unix.Close(fd))
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	if st.Nlink == 0 {
		return -1, errors.Join(unix.ENOENT, unix.Close(fd))
	}
	return fd, nil
}

func flock(fd, how int) error {
	for {
		if err := unix.Flock(fd, how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// removeStale removes what killed writers of the image name have left in the
// directory parent. A leftover that cannot be removed does no harm.
func removeStale(parent int, name string) error {
	fd, err := openat(parent, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(fd), ".")
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(1024)
		for _, n := range names {
			if strings.HasPrefix(n, tmpPrefix(name)) {
				removeIfStale(parent, n)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("look for leftovers: %w", err)
		}
	}
}

// removeIfStale removes a directory that nobody has locked. The lock is held
// until it is gone, so that two who try it do not meet.
func removeIfStale(parent int, name string) {
	fd, err := openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil {
		_ = removeDir(parent, name, fd) // a leftover that stays does no harm
	}
}

// removeDir removes a directory and the files in it; fd is the directory. The error is of
// the first file that stays: on a disk that takes no more it is the same of all of them.
func removeDir(parent int, name string, fd int) error {
	again, err := openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(again), name)
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	for _, n := range names {
		if e := unix.Unlinkat(fd, n, 0); e != nil && err == nil {
			err = &fs.PathError{Op: "remove", Path: filepath.Join(name, n), Err: e}
		}
	}
	if e := unix.Unlinkat(parent, name, unix.AT_REMOVEDIR); e != nil && err == nil {
		err = &fs.PathError{Op: "remove", Path: name, Err: e}
	}
	return err
}
