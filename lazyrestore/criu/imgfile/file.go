package imgfile

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// OpenFile opens a file of a set for reading. What is no regular file is an error: a
// pipe in the place of one would be waited for without end.
func OpenFile(path string) (*os.File, error) {
	fail := func(err error) (*os.File, error) { return nil, &fs.PathError{Op: "open", Path: path, Err: err} }
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	for errors.Is(err, unix.EINTR) {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	}
	if err != nil {
		return fail(err)
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errors.New("not a regular file")
	}
	if err == nil {
		err = unix.SetNonblock(fd, false)
	}
	if err != nil {
		_ = unix.Close(fd)
		return fail(err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// A Stamp changes when a file is written to, and when another takes its place.
type Stamp struct {
	dev, ino uint64
	size     int64
	mtime    unix.Timespec
}

// StampOf is the stamp of an open file.
func StampOf(f *os.File) (Stamp, error) {
	c, err := f.SyscallConn()
	if err != nil {
		return Stamp{}, err
	}
	var st unix.Stat_t
	var failed error
	if err := c.Control(func(fd uintptr) { failed = unix.Fstat(int(fd), &st) }); err != nil {
		return Stamp{}, err
	}
	if failed != nil {
		return Stamp{}, &fs.PathError{Op: "stat", Path: f.Name(), Err: failed}
	}
	return Stamp{st.Dev, st.Ino, st.Size, st.Mtim}, nil
}

// Written is when the file was written to last, in nanoseconds.
func (s Stamp) Written() int64 { return s.mtime.Nano() }

// errChanged names what writes to a set that is there.
var errChanged = errors.New("it was written to after it was opened, as by another criu dump into the directory, or by criu restore --auto-dedup: pages and pagemaps may no longer be of one time")

// Changed is an error if f is not as it was when it had the stamp. Called after a read,
// it says whether what was read is what the pagemap of that time is about.
func (s Stamp) Changed(f *os.File) error {
	now, err := StampOf(f)
	if err == nil && now != s {
		err = &DamagedError{File: f.Name(), Err: errChanged}
	}
	return err
}

// Stamps are those of files by their paths, each of the time when it was read first.
type Stamps map[string]Stamp

// Changed is an error if one of the files is another than it was, or is gone.
func (s Stamps) Changed() error {
	for path, was := range s {
		if err := was.changedAt(path); err != nil {
			return err
		}
	}
	return nil
}

// changedAt is Changed for whatever file is at a path by now.
func (s Stamp) changedAt(path string) error {
	f, err := OpenFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &DamagedError{File: path, Err: errChanged}
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return s.Changed(f)
}
