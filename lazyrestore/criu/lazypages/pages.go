package lazypages

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sort"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/thread"
)

// pagesObject is the one object of the image that pages are.
const pagesObject = "pages"

// pages are the lazy pages of a set as a source: one object, in which the
// files that hold them lie one after another.
type pages struct {
	server  *Server
	numbers map[string]uint32 // of files, by their paths
	files   []file
	starts  []int64 // where each of them begins in the object, and where that ends

	spans   []span // what the page server has, in the order of the object
	current int    // pid of the latest span
	latest  uint32 // its file: those of sets below may have come since
}

// A span is adjacent pages of a task that a page server has.
type span struct {
	at  int64 // in the object; while the set is read, in its file
	pid int
	page.Range
	file uint32
}

var (
	_ image.Source    = (*pages)(nil)
	_ image.Immediate = (*pages)(nil)
)

// place is where the pager's image has the pages of r.
func (p *pages) place(pid int, m *imgfile.Memory, r imgfile.Run) (page.Addr, error) {
	// CRIU looks with the server for what the set itself has, and for what a
	// set below has in that.
	if p.server != nil && (r.File == imgfile.Elsewhere || m.Files[r.File].Depth == 0) {
		return p.remote(pid, r.Range)
	}
	if r.File == imgfile.Elsewhere {
		return 0, fmt.Errorf("pages %v are in no file of the set: whoever dumped it serves them (--page-server), "+
			"or a set that this one builds on is an image of lazyrestore, of which export makes a set", r.Range)
	}
	return p.local(m.Files[r.File], r)
}

// A file is a pages file, or what a page server has of one task.
type file struct {
	path string
	f    *os.File // nil: with the page server
	size int64    // in whole pages
	// stamp is the file's when it was opened.
	stamp imgfile.Stamp
	// inMemory says that the file system is memory: no read ever waits for a
	// disk, and the kernel does not take RWF_NOWAIT.
	inMemory bool
}

// local is where the image has the pages of r, which lie in a pages file.
func (p *pages) local(from imgfile.PagesFile, r imgfile.Run) (page.Addr, error) {
	n, ok := p.numbers[from.Path]
	if !ok {
		f, err := openPages(from)
		if err != nil {
			return 0, err
		}
		if n, err = p.add(f); err != nil {
			return 0, errors.Join(err, f.f.Close())
		}
		p.numbers[from.Path] = n
	}
	return imgfile.ImageAddr(n, r.Offset), nil
}

// openPages opens a pages file.
func openPages(from imgfile.PagesFile) (file, error) {
	f, stamp, err := from.Open()
	if err != nil {
		return file{}, err
	}
	var sfs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &sfs); err != nil {
		return file{}, errors.Join(os.NewSyscallError("fstatfs", err), f.Close())
	}
	memory := sfs.Type == unix.TMPFS_MAGIC || sfs.Type == unix.RAMFS_MAGIC
	return file{path: from.Path, f: f, size: from.Size, stamp: stamp, inMemory: memory}, nil
}

// add numbers a file.
func (p *pages) add(f file) (uint32, error) {
	if len(p.files) > imgfile.MaxPagesID || f.size > imgfile.MaxPagesBytes {
		return 0, fmt.Errorf("%s: %d bytes in file %d of the set are more than there is room for", f.path, f.size, len(p.files))
	}
	p.files = append(p.files, f)
	return uint32(len(p.files) - 1), nil
}

// remote is where the image has pages of a task that the page server gives.
// The tasks come one after another.
func (p *pages) remote(pid int, r page.Range) (page.Addr, error) {
	if p.current != pid {
		n, err := p.add(file{path: fmt.Sprintf("page server, task %d", pid)})
		if err != nil {
			return 0, err
		}
		p.current, p.latest = pid, n
	}
	n := p.latest
	f := &p.files[n]
	off := f.size
	if int64(r.Len()) > imgfile.MaxPagesBytes-off {
		return 0, fmt.Errorf("%s: more pages than there is room for", f.path)
	}
	f.size += int64(r.Len())
	if k := len(p.spans) - 1; k >= 0 && p.spans[k].file == n && p.spans[k].End == r.Start {
		p.spans[k].End = r.End
	} else {
		p.spans = append(p.spans, span{off, pid, r, n})
	}
	return imgfile.ImageAddr(n, off), nil
}

// image is the image that the pages are, once all files are known.
func (p *pages) image() (*image.Image, error) {
	var parts []page.Range
	at := int64(0)
	for i, f := range p.files {
		p.starts = append(p.starts, at)
		if f.size > 0 {
			parts = append(parts, page.RangeOf(imgfile.ImageAddr(uint32(i), 0), uint64(f.size)))
		}
		at += f.size
	}
	p.starts = append(p.starts, at)
	for i := range p.spans {
		p.spans[i].at += p.starts[p.spans[i].file]
	}
	return image.NewPlain(p, pagesObject, parts, chunkBytes)
}

// Close is image.Source's.
func (p *pages) Close() error {
	var errs []error
	if p.server != nil {
		errs = append(errs, p.server.Close())
	}
	for _, f := range p.files {
		if f.f != nil {
			errs = append(errs, f.f.Close())
		}
	}
	return errors.Join(errs...)
}

// Size is image.Source's.
func (p *pages) Size(_ context.Context, object string) (int64, error) {
	if object != pagesObject {
		return 0, fs.ErrNotExist
	}
	return p.starts[len(p.files)], nil
}

// each calls do with the parts of the n bytes at off, by files.
func (p *pages) each(off int64, b []byte, do func(i int, b []byte, off int64) error) error {
	i := sort.Search(len(p.files), func(i int) bool { return p.starts[i+1] > off })
	for len(b) > 0 {
		if i >= len(p.files) {
			return io.ErrUnexpectedEOF
		}
		n := min(int64(len(b)), p.starts[i+1]-off)
		if n > 0 {
			if err := do(i, b[:n], off); err != nil {
				return err
			}
		}
		b, off = b[n:], off+n
		i++
	}
	return nil
}

// ReadRange is image.Source's.
func (p *pages) ReadRange(ctx context.Context, _ string, b []byte, off int64, lane image.Lane) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return p.each(off, b, func(i int, b []byte, off int64) error {
		f := &p.files[i]
		if f.f == nil {
			return p.fetch(ctx, b, off, lane)
		}
		if _, err := f.f.ReadAt(b, off-p.starts[i]); errors.Is(err, io.EOF) {
			return fmt.Errorf("%s is shorter than it was: %w", f.path, io.ErrUnexpectedEOF)
		} else if err != nil {
			return err
		}
		return f.stamp.Changed(f.f)
	})
}

// errNotNow means that a read would have to wait.
var errNotNow = errors.New("not in memory")

// ReadNow is image.Immediate's: it reads what is in the page cache.
func (p *pages) ReadNow(_ string, b []byte, off int64) (bool, error) {
	err := p.each(off, b, func(i int, b []byte, off int64) error {
		f := &p.files[i]
		if f.f == nil {
			return errNotNow
		}
		return readNow(f, b, off-p.starts[i])
	})
	if errors.Is(err, errNotNow) {
		return false, nil
	}
	return err == nil, err
}

// readNow reads from f what is in the page cache.
func readNow(f *file, b []byte, off int64) error {
	read := thread.PreadNow
	if f.inMemory {
		read = thread.PreadMemory
	}
	fd := int(f.f.Fd())
	for len(b) > 0 {
		switch n, errno := read(fd, b, off); {
		case errno == unix.EINTR:
		case errno == unix.EAGAIN, errno == unix.EOPNOTSUPP, errno == unix.ENOSYS:
			return errNotNow
		case errno != 0:
			return &fs.PathError{Op: "read", Path: f.path, Err: errno}
		case n == 0:
			return fmt.Errorf("%s is shorter than it was: %w", f.path, io.ErrUnexpectedEOF)
		default:
			b, off = b[n:], off+int64(n)
		}
	}
	return f.stamp.Changed(f.f)
}

// fetch reads from the page server.
func (p *pages) fetch(ctx context.Context, b []byte, off int64, lane image.Lane) error {
	var asks []ask
	k := sort.Search(len(p.spans), func(i int) bool { return p.spans[i].at+int64(p.spans[i].Len()) > off })
	for ; len(b) > 0; k++ {
		s := &p.spans[k]
		in := page.Addr(off - s.at)
		n := min(int64(len(b)), int64(s.End-s.Start-in))
		asks = append(asks, ask{s.pid, s.Start + in, b[:n]})
		b, off = b[n:], off+n
	}
	return p.server.read(ctx, asks, lane)
}

// An ask is adjacent pages of a task that are wanted from a page server, and
// where they go.
type ask struct {
	pid int
	at  page.Addr
	b   []byte
}
