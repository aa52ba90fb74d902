package pageset

import (
	"errors"
	"io"
	"os"
	"sync"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
)

// maxFiles is how many pages files a set has open at most, but for those that
// are being read: opening one again costs two microseconds.
const maxFiles = 64

// files are the open pages files of a set. The zero value is none.
type files struct {
	mu   sync.Mutex
	open map[string]*file // under mu
	uses uint64           // under mu
}

// A file is one that is open.
type file struct {
	*os.File
	readers int    // under files.mu
	used    uint64 // when last; under files.mu
}

// An origin is a pages file as it was when the pagemap was read that is about it, or an
// object of an image.
type origin struct {
	path  string
	stamp imgfile.Stamp // of a file
}

// originOf looks at a pages file.
func originOf(from imgfile.PagesFile) (*origin, error) {
	f, stamp, err := from.Open()
	if err != nil {
		return nil, err
	}
	return &origin{from.Path, stamp}, f.Close()
}

// read fills p from a file.
func (fs *files) read(from *origin, p []byte, off int64) error {
	f, err := fs.get(from.path)
	if err != nil {
		return err
	}
	defer fs.put(f)
	n, err := f.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		return shortened(from.path, off+int64(n))
	}
	if err != nil {
		return err
	}
	return from.stamp.Changed(f.File)
}

// get opens a file, if it is not open.
func (fs *files) get(path string) (*file, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f := fs.open[path]
	if f == nil {
		opened, err := imgfile.OpenFile(path)
		if err != nil {
			return nil, err
		}
		f = &file{File: opened}
		if fs.open == nil {
			fs.open = make(map[string]*file)
		}
		fs.makeRoom()
		fs.open[path] = f
	}
	fs.uses++
	f.used = fs.uses
	f.readers++
	return f, nil
}

// makeRoom closes the file that nobody reads and that was not read for longest,
// if there are many.
func (fs *files) makeRoom() {
	if len(fs.open) < maxFiles {
		return
	}
	oldest := ""
	for path, f := range fs.open {
		if f.readers == 0 && (oldest == "" || f.used < fs.open[oldest].used) {
			oldest = path
		}
	}
	if oldest != "" {
		fs.open[oldest].Close() // only read from
		delete(fs.open, oldest)
	}
}

func (fs *files) put(f *file) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f.readers--
}

func (fs *files) close() error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	var errs []error
	for _, f := range fs.open {
		errs = append(errs, f.Close())
	}
	clear(fs.open)
	return errors.Join(errs...)
}
