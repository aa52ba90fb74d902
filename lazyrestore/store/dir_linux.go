package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/thread"
)

// A Dir is an image in a directory. It is an image.Source, image.Immediate and
// image.Filer; all methods but Close may be called concurrently.
//
// Objects are opened once, when first used, relative to the directory as it
// was opened: renaming or removing it later does not disturb a reader.
// Symbolic links and everything else that is not a regular file are refused.
type Dir struct {
	path string
	fd   int

	mu      sync.RWMutex
	objects map[string]*object // under mu; an object never changes
}

// An object is an open file.
type object struct {
	fd       int
	size     int64
	inMemory bool // the file system is memory: no read ever waits for a disk
}

var (
	_ image.Source    = (*Dir)(nil)
	_ image.Immediate = (*Dir)(nil)
	_ image.Filer     = (*Dir)(nil)
)

var errNotRegular = errors.New("not a regular file")

// OpenDir opens the image in the directory path, without looking into it. The
// error is an *fs.PathError.
func OpenDir(path string) (*Dir, error) {
	fd, err := openat(unix.AT_FDCWD, path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, &fs.PathError{Op: "open image", Path: path, Err: err}
	}
	return &Dir{path: path, fd: fd, objects: make(map[string]*object)}, nil
}

// openat opens a file that is there.
func openat(dirfd int, path string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dirfd, path, flags|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// Path is where the image was when it was opened.
func (d *Dir) Path() string { return d.path }

// Close closes the directory and its objects.
func (d *Dir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	errs := []error{unix.Close(d.fd)}
	for _, o := range d.objects {
		errs = append(errs, unix.Close(o.fd))
	}
	d.objects, d.fd = nil, -1
	return errors.Join(errs...)
}

func (d *Dir) pathError(op, name string, err error) error {
	return &fs.PathError{Op: op, Path: filepath.Join(d.path, name), Err: err}
}

// open gives an object, which it opens if nobody has.
func (d *Dir) open(name string) (*object, error) {
	d.mu.RLock()
	o := d.objects[name]
	d.mu.RUnlock()
	if o != nil {
		return o, nil
	}
	if !validName(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if o := d.objects[name]; o != nil {
		return o, nil
	}
	o, err := openObject(d.fd, name)
	if err != nil {
		return nil, d.pathError("open", name, err)
	}
	d.objects[name] = o
	return o, nil
}

// validName reports whether name is that of a file in the image's directory.
func validName(name string) bool {
	return name != "" && name != "." && name != ".." && !strings.ContainsAny(name, "/\x00")
}

func openObject(dirfd int, name string) (*object, error) {
	// O_NONBLOCK: a FIFO in an object's place must not make us wait.
	fd, err := openat(dirfd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	if errors.Is(err, unix.ELOOP) {
		return nil, errors.Join(errNotRegular, image.ErrDamaged) // a symbolic link
	}
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	var sfs unix.Statfs_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		// Trying again does not make it one.
		return nil, errors.Join(errNotRegular, image.ErrDamaged, unix.Close(fd))
	}
	if err := unix.Fstatfs(fd, &sfs); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	memory := sfs.Type == unix.TMPFS_MAGIC || sfs.Type == unix.RAMFS_MAGIC
	return &object{fd: fd, size: st.Size, inMemory: memory}, nil
}

// Size is image.Source's. It is the size that the object had when it was
// first used.
func (d *Dir) Size(ctx context.Context, name string) (int64, error) {
	if err := context.Cause(ctx); err != nil {
		return 0, err
	}
	o, err := d.open(name)
	if err != nil {
		return 0, err
	}
	return o.size, nil
}

// ReadRange is image.Source's. A file is read in one way whatever the lane.
func (d *Dir) ReadRange(ctx context.Context, name string, p []byte, off int64, _ image.Lane) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	o, err := d.open(name)
	if err != nil {
		return err
	}
	return d.read(o, name, p, off)
}

func (d *Dir) read(o *object, name string, p []byte, off int64) error {
	if off < 0 || int64(len(p)) > math.MaxInt64-off {
		return d.pathError("read", name, fs.ErrInvalid)
	}
	for len(p) > 0 {
		n, err := o.pread(p, off)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return d.pathError("read", name, err)
		case n == 0:
			return fmt.Errorf("read %s at offset %d: %w", filepath.Join(d.path, name), off, io.ErrUnexpectedEOF)
		default:
			p, off = p[n:], off+int64(n)
		}
	}
	return nil
}

// pread is pread(2), of which Go's scheduler is told only if it has to wait. p is
// not empty.
func (o *object) pread(p []byte, off int64) (int, error) {
	read := thread.PreadNow
	if o.inMemory {
		read = thread.PreadMemory
	}
	n, errno := read(o.fd, p, off)
	switch errno {
	case 0:
		return n, nil
	case unix.EAGAIN, unix.EOPNOTSUPP, unix.ENOSYS:
		return unix.Pread(o.fd, p, off)
	}
	return 0, errno
}

// ReadNow is image.Immediate's: it reads what is in the page cache.
func (d *Dir) ReadNow(name string, p []byte, off int64) (bool, error) {
	o, err := d.open(name)
	if err != nil {
		return false, err
	}
	if o.inMemory {
		err := d.read(o, name, p, off)
		return err == nil, err
	}
	if off < 0 || int64(len(p)) > math.MaxInt64-off {
		return false, d.pathError("read", name, fs.ErrInvalid)
	}
	for len(p) > 0 {
		n, errno := thread.PreadNow(o.fd, p, off)
		switch {
		case errno == unix.EINTR:
		case errno == unix.EAGAIN || errno == unix.EOPNOTSUPP || errno == unix.ENOSYS:
			return false, nil
		case errno != 0:
			return false, d.pathError("read", name, errno)
		case n == 0:
			return false, fmt.Errorf("read %s at offset %d: %w", filepath.Join(d.path, name), off, io.ErrUnexpectedEOF)
		default:
			p, off = p[n:], off+int64(n)
		}
	}
	return true, nil
}

// File is image.Filer's. The file has an offset of its own only until it is
// moved: read it with ReadAt or preadv.
func (d *Dir) File(name string) (*os.File, error) {
	o, err := d.open(name)
	if err != nil {
		return nil, err
	}
	fd, err := unix.FcntlInt(uintptr(o.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, d.pathError("open", name, err)
	}
	return os.NewFile(uintptr(fd), filepath.Join(d.path, name)), nil
}
