package lazypages

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// chunkBytes is how much of pages files is fetched and installed as one.
const chunkBytes = 64 << 10

// A set is an image set as the pager needs it.
type set struct {
	tasks map[int][]page.Mapping // by pid: what the image fills; zombies and tasks without lazy pages have none
	bare  map[int]bool           // tasks without a pagemap: zombies
	bytes uint64                 // of lazy pages
	pages *pages                 // where they are, nil if an image of ours has them
	image *image.Image
	files string // sums of the files that tell the dump
}

// load reads the image set in dir. Its lazy pages are in img if that is not
// nil, with the page server if server is not nil, and else in its files.
func load(ctx context.Context, dir *imgfile.Dir, img *image.Image, server *Server) (*set, error) {
	tasks, err := dir.Tasks()
	if err != nil {
		return nil, err
	}
	s := &set{tasks: make(map[int][]page.Mapping, len(tasks)), bare: map[int]bool{}, image: img}
	if img == nil {
		s.pages = &pages{server: server, numbers: map[string]uint32{}}
	} else if err := ofSet(img, dir); err != nil {
		return nil, err
	}
	if s.files, err = distinctIn(dir); err != nil {
		return nil, err
	}
	read := imgfile.Stamps{}
	for _, t := range tasks {
		if err := s.task(ctx, dir, t.Pid, read); err != nil {
			return nil, errors.Join(err, s.close())
		}
	}
	err = read.Changed() // before all of them were there
	if err == nil && s.pages != nil {
		s.image, err = s.pages.image()
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// task adds a task of the tree; the pagemaps that it is by are noted in read.
func (s *set) task(ctx context.Context, dir *imgfile.Dir, pid int, read imgfile.Stamps) error {
	m, err := dir.Memory(imgfile.OfTask(pid))
	if errors.Is(err, fs.ErrNotExist) {
		// Without a pagemap nobody would know which of its pages are not zero.
		if _, noMM := os.Lstat(dir.File(fmt.Sprintf("mm-%d.img", pid))); errors.Is(noMM, fs.ErrNotExist) {
			s.tasks[pid], s.bare[pid] = nil, true // a zombie
			return nil
		}
	}
	if err != nil {
		return err
	}
	maps.Copy(read, m.Pagemaps)
	if s.tasks[pid], err = s.mapped(ctx, pid, m); err != nil {
		return fmt.Errorf("task %d: %w", pid, err)
	}
	return nil
}

func (s *set) close() error {
	if s.pages == nil {
		return nil
	}
	return s.pages.Close()
}

// mapped is the mappings of a task's lazy pages to the pager's image.
func (s *set) mapped(ctx context.Context, pid int, m *imgfile.Memory) (maps []page.Mapping, err error) {
	var have []page.Mapping
	if s.pages == nil {
		if have, err = inImage(ctx, s.image, m.ID); err != nil {
			return nil, err
		}
	}
	for _, r := range m.Runs {
		if !r.Lazy {
			continue
		}
		s.bytes += r.Len()
		if s.pages == nil {
			maps, err = cut(maps, have, r.Range)
		} else {
			var at page.Addr
			at, err = s.pages.place(pid, m, r)
			maps = join(maps, r.Range, at)
		}
		if err != nil {
			return nil, err
		}
	}
	return maps, nil
}

// sum is of what is served, and from where: the same for who goes on with it. Pages
// files are told apart by when they were written, as nothing sums their bytes, page
// servers by their addresses.
func (s *set) sum() string {
	h := sha256.New()
	fmt.Fprintln(h, s.files)
	for _, pid := range slices.Sorted(maps.Keys(s.tasks)) {
		fmt.Fprintln(h, pid, s.bare[pid], s.tasks[pid])
	}
	if s.pages == nil {
		fmt.Fprintln(h, s.image.Digest())
	} else {
		for _, f := range s.pages.files {
			fmt.Fprintln(h, f.size, f.stamp.Written())
		}
		if s.pages.server != nil {
			fmt.Fprintln(h, s.pages.server.Address)
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// join appends a mapping, or to the last one.
func join(maps []page.Mapping, r page.Range, at page.Addr) []page.Mapping {
	if k := len(maps) - 1; k >= 0 && maps[k].End == r.Start && maps[k].ImageAddr(r.Start) == at {
		maps[k].End = r.End
		return maps
	}
	return append(maps, page.Mapping{Range: r, Image: at, PageSize: page.Size})
}
