package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
)

// ErrNotEmpty is returned for an image that would replace something: its path
// is taken by anything but an empty directory.
var ErrNotEmpty = errors.New("exists and is not an empty directory")

var (
	errMount    = errors.New("is a mount point, which cannot be replaced: name a directory in it")
	errDone     = errors.New("already committed or aborted")
	errNotEnded = errors.New("object not closed")
)

// A Staging is an image being written. It is an image.Sink. Create may be
// called concurrently, and objects be written concurrently; Commit and Abort
// only when all that is over.
type Staging struct {
	path   string // the final one
	name   string // its last part
	tmp    string // name of the directory until Commit
	parent int    // the directory above
	dir    int    // the directory itself, locked

	mu    sync.Mutex
	files []*file // under mu
	done  bool    // under mu
}

var _ image.Sink = (*Staging)(nil)

// CreateDir starts an image that Commit will put at path, which must be free
// or an empty directory; the directory above must exist. Leftovers of killed
// writers for the same path are removed. The error is an *fs.PathError; it
// wraps ErrNotEmpty where path is taken.
func CreateDir(path string) (*Staging, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("create image %s: %w", path, err)
	}
	s := &Staging{path: abs, name: filepath.Base(abs), dir: -1}
	s.parent, err = openat(unix.AT_FDCWD, filepath.Dir(abs), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, &fs.PathError{Op: "create image in", Path: filepath.Dir(abs), Err: err}
	}
	if err := s.start(); err != nil {
		return nil, errors.Join(&fs.PathError{Op: "create image", Path: abs, Err: err}, unix.Close(s.parent))
	}
	return s, nil
}

func (s *Staging) start() error {
	if err := checkFree(s.parent, s.name); err != nil {
		return err
	}
	if err := removeStale(s.parent, s.name); err != nil {
		return err
	}
	for {
		s.tmp = tmpName(s.name)
		if err := unix.Mkdirat(s.parent, s.tmp, 0o700); err != nil {
			if errors.Is(err, unix.EEXIST) {
				continue
			}
			return err
		}
		dir, err := lockDir(s.parent, s.tmp)
		if err == nil {
			s.dir = dir
			return nil
		}
		// Somebody who removes leftovers was quicker than our lock
		// (TestCreateDirRace): once more, under another name.
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EWOULDBLOCK) {
			return errors.Join(err, unix.Unlinkat(s.parent, s.tmp, unix.AT_REMOVEDIR))
		}
	}
}

// checkFree reports whether an image can be put at name.
func checkFree(parent int, name string) error {
	var st unix.Statx_t
	err := unix.Statx(parent, name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_TYPE, &st)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return err
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return taken(parent, name)
	case st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0:
		return errMount
	}
	fd, err := openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	if _, err := dir.Readdirnames(1); !errors.Is(err, io.EOF) {
		if err == nil {
			return taken(parent, name)
		}
		return err
	}
	return nil
}

// taken is the error of a name at which there is something, with advice to remove that
// only if it is an image.
func taken(parent int, name string) error {
	if unix.Faccessat(parent, filepath.Join(name, image.ManifestObject), unix.F_OK, 0) == nil {
		return fmt.Errorf("%w: remove this image, or name another", ErrNotEmpty)
	}
	return fmt.Errorf("%w: name another", ErrNotEmpty)
}

// Create makes the file of an object.
func (s *Staging) Create(name string) (io.WriteCloser, error) {
	path := filepath.Join(s.path, name)
	if !validName(name) {
		return nil, &fs.PathError{Op: "create", Path: path, Err: fs.ErrInvalid}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done {
		return nil, &fs.PathError{Op: "create", Path: path, Err: errDone}
	}
	fd, err := unix.Openat(s.dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &fs.PathError{Op: "create", Path: path, Err: err}
	}
	f := &file{path: path, fd: fd}
	s.files = append(s.files, f)
	return f, nil
}

// Commit makes the image durable and puts it in place. An error means that
// nothing is there, unless it says otherwise; the Staging has then been
// aborted.
func (s *Staging) Commit() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done {
		return &fs.PathError{Op: "commit image", Path: s.path, Err: errDone}
	}
	err := s.commit()
	if err != nil {
		err = fmt.Errorf("commit image %s: %w", s.path, errors.Join(err, s.remove()))
	}
	s.done = true
	if err == nil {
		err = s.syncParent()
	}
	return errors.Join(err, unix.Close(s.dir), unix.Close(s.parent))
}

// syncParent makes the new name durable.
func (s *Staging) syncParent() error {
	if err := syncDir(s.parent); err != nil {
		return fmt.Errorf("image %s is in place, but might not survive a crash: sync %s: %w", s.path, filepath.Dir(s.path), err)
	}
	return nil
}

// commit does all up to the rename.
func (s *Staging) commit() error {
	if err := s.syncFiles(); err != nil {
		return err
	}
	if err := syncDir(s.dir); err != nil {
		return fmt.Errorf("sync %s: %w", s.tmp, err)
	}
	// Replaces nothing or an empty directory; everything else the kernel
	// refuses, so that there is no race with whoever puts something there.
	err := unix.Renameat(s.parent, s.tmp, s.parent, s.name)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOTDIR) {
		return taken(s.parent, s.name)
	}
	return err
}

// syncFiles syncs all objects at once, and closes them.
func (s *Staging) syncFiles() error {
	errs := make([]error, len(s.files))
	var wg sync.WaitGroup
	for i, f := range s.files {
		wg.Go(func() { errs[i] = f.sync() })
	}
	wg.Wait()
	s.files = nil
	return errors.Join(errs...)
}

// Abort removes what was written. After Commit it does nothing, so that it can
// be deferred.
func (s *Staging) Abort() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done {
		return nil
	}
	s.done = true
	if err := errors.Join(s.remove(), unix.Close(s.dir), unix.Close(s.parent)); err != nil {
		return fmt.Errorf("give up image %s: %w", s.path, err)
	}
	return nil
}

// remove closes all files and removes the directory.
func (s *Staging) remove() error {
	var errs []error
	for _, f := range s.files {
		errs = append(errs, f.release())
	}
	s.files = nil
	errs = append(errs, removeDir(s.parent, s.tmp, s.dir))
	return errors.Join(errs...)
}

// syncDir syncs a directory, on file systems that know what that means.
func syncDir(fd int) error {
	err := fsync(fd)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

func fsync(fd int) error {
	for {
		if err := unix.Fsync(fd); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
