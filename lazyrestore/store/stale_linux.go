package store

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// tmpName is a new name for a directory in which the image name is being written.
func tmpName(name string) string { return tmpPrefix(name) + strings.ToLower(rand.Text()[:tmpRandom]) }

// isTmp reports whether tmpName may have made a name for the image name. What somebody else
// has put beside an image is not ours to remove.
func isTmp(s, name string) bool {
	random, ok := strings.CutPrefix(s, tmpPrefix(name))
	return ok && len(random) == tmpRandom && strings.Trim(random, "abcdefghijklmnopqrstuvwxyz234567") == ""
}

const tmpRandom = 10 // letters and digits at the end of a tmpName

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
			if isTmp(n, name) {
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

// removeIfStale removes a directory that nobody has locked.
func removeIfStale(parent int, name string) {
	fd, err := openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	removeOpened(parent, name, fd)
}

// removeOpened is removeIfStale of the directory fd, which had the name when it was opened.
// Its writer may have committed it since, which gave up the lock: under the final name it is
// nobody's leftover. Whoever renames or removes one has its lock, so that the name, once
// looked at under the lock, stays.
func removeOpened(parent int, name string, fd int) {
	if flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil && hasName(fd, parent, name) {
		_ = removeDir(parent, name, fd) // a leftover that stays does no harm
	}
}

// hasName reports whether a name in parent is that of what fd has open.
func hasName(fd, parent int, name string) bool {
	var own, named unix.Stat_t
	return unix.Fstat(fd, &own) == nil &&
		unix.Fstatat(parent, name, &named, unix.AT_SYMLINK_NOFOLLOW) == nil &&
		own.Ino == named.Ino && own.Dev == named.Dev
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
