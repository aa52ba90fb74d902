package lazypages

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// chunkBytes is how much of pages files is fetched and installed as one.
const chunkBytes = 64 << 10

// A set is an image set as the pager needs it.
type set struct {
	tasks map[int][]page.Mapping // by pid: what the image fills; zombies and tasks without lazy pages have none
	bytes uint64                 // of lazy pages
	pages *pages                 // where they are, nil if an image of ours has them
	image *image.Image
}

// load reads the image set in dir. Its lazy pages are in img if that is not
// nil, with the page server if server is not nil, and else in its files.
func load(dir *imgfile.Dir, img *image.Image, server *Server) (*set, error) {
	tasks, err := dir.Tasks()
	if err != nil {
		return nil, err
	}
	s := &set{tasks: make(map[int][]page.Mapping, len(tasks)), image: img}
	if img == nil {
		s.pages = &pages{server: server, numbers: map[string]uint32{}}
	}
	for _, t := range tasks {
		m, err := dir.Memory(imgfile.OfTask(t.Pid))
		switch {
		case errors.Is(err, fs.ErrNotExist): // a zombie
			s.tasks[t.Pid] = nil
			continue
		case err != nil:
			return nil, errors.Join(err, s.close())
		}
		if s.tasks[t.Pid], err = s.mapped(t.Pid, m); err != nil {
			return nil, errors.Join(fmt.Errorf("task %d: %w", t.Pid, err), s.close())
		}
	}
	if s.pages != nil {
		if s.image, err = s.pages.image(); err != nil {
			return nil, errors.Join(err, s.close())
		}
	}
	return s, nil
}

func (s *set) close() error {
	if s.pages == nil {
		return nil
	}
	return s.pages.Close()
}

// mapped is the mappings of a task's lazy pages to the pager's image.
func (s *set) mapped(pid int, m *imgfile.Memory) ([]page.Mapping, error) {
	var maps []page.Mapping
	for _, r := range m.Runs {
		if !r.Lazy {
			continue
		}
		at, err := s.place(pid, m, r)
		if err != nil {
			return nil, err
		}
		s.bytes += r.Len()
		if k := len(maps) - 1; k >= 0 && maps[k].End == r.Start && maps[k].ImageAddr(r.Start) == at {
			maps[k].End = r.End
			continue
		}
		maps = append(maps, page.Mapping{Range: r.Range, Image: at, PageSize: page.Size})
	}
	return maps, nil
}

// place is where the pager's image has the pages of r.
func (s *set) place(pid int, m *imgfile.Memory, r imgfile.Run) (page.Addr, error) {
	if s.pages == nil {
		// The set says no longer that it has them; what it built on is part of it.
		f := m.Files[max(r.File, 0)]
		if f.Depth > 0 {
			return 0, fmt.Errorf("pages %v are in %s, and not in the set that the compressed image was made of", r.Range, f.Path)
		}
		if f.ID > imgfile.MaxPagesID || r.Whole > imgfile.MaxPagesBytes-int64(r.Len()) {
			return 0, fmt.Errorf("pages %v: %s has no place in an image of ours", r.Range, f.Path)
		}
		return imgfile.ImageAddr(f.ID, r.Whole), nil
	}
	// CRIU looks with the server for what the set itself has, and for what a
	// set below has in that.
	if s.pages.server != nil && (r.File == imgfile.Elsewhere || m.Files[r.File].Depth == 0) {
		return s.pages.remote(pid, r.Range)
	}
	if r.File == imgfile.Elsewhere {
		return 0, fmt.Errorf("pages %v are in no file of the set: whoever dumped it serves them (--page-server)", r.Range)
	}
	return s.pages.local(m.Files[r.File].Path, r)
}

// A file is a pages file, or what a page server has of one task.
type file struct {
	path string
	f    *os.File // nil: with the page server
	size int64    // in whole pages
	// inMemory says that the file system is memory: no read ever waits for a
	// disk, and the kernel does not take RWF_NOWAIT.
	inMemory bool
}

// local is where the image has the pages of r, which lie in a pages file.
func (p *pages) local(path string, r imgfile.Run) (page.Addr, error) {
	n, ok := p.numbers[path]
	if !ok {
		f, err := os.Open(path)
		if err != nil {
			return 0, err
		}
		st, err := f.Stat()
		if err != nil {
			return 0, errors.Join(err, f.Close())
		}
		var sfs unix.Statfs_t
		if err := unix.Fstatfs(int(f.Fd()), &sfs); err != nil {
			return 0, errors.Join(os.NewSyscallError("fstatfs", err), f.Close())
		}
		memory := sfs.Type == unix.TMPFS_MAGIC || sfs.Type == unix.RAMFS_MAGIC
		if n, err = p.add(file{path, f, st.Size() &^ (page.Size - 1), memory}); err != nil {
			return 0, errors.Join(err, f.Close())
		}
		p.numbers[path] = n
	}
	if size := p.files[n].size; r.Offset > size || int64(r.Len()) > size-r.Offset {
		return 0, &imgfile.DamagedError{File: path, Offset: size, Err: fmt.Errorf("it ends before pages %v", r.Range)}
	}
	return imgfile.ImageAddr(n, r.Offset), nil
}

// add numbers a file.
func (p *pages) add(f file) (uint32, error) {
	if len(p.files) > imgfile.MaxPagesID || f.size > imgfile.MaxPagesBytes {
		return 0, fmt.Errorf("%s: %d bytes in file %d of the set are more than there is room for", f.path, f.size, len(p.files))
	}
	p.files = append(p.files, f)
	return uint32(len(p.files) - 1), nil
}
