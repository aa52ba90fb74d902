// Package pageset gives the pages of a CRIU image set, wherever they are: in
// the pages files of the set and of those that it builds on, or in an image of
// ours that was made of a set.
//
// A Set is for all goroutines; each reads through a Reader of its own. What a
// Set holds open is bounded: pages files are opened when they are read, and
// the ones that were not read for longest are closed for others. Where the pages of a
// set in files are is read at once, and the files are as they were then whenever
// pages come: nobody is given pages of two dumps.
package pageset

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"sort"
	"sync"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// A Set is an image set to read pages from.
type Set struct {
	dir *imgfile.Dir // CRIU's files; nil: im
	im  *image.Image
	ix  *image.Index

	files files

	mu       sync.Mutex
	memories map[imgfile.MemoryID]*Memory // under mu; all of them if there is dir; a Memory never changes
	checked  map[string]bool              // objects of im whose sums were compared; under mu
}

// OfFiles is the set in a directory, as it is now. Errors wrap imgfile.ErrDamaged, or
// are those of the files.
func OfFiles(dir *imgfile.Dir) (*Set, error) {
	ids, err := dir.Memories()
	if err != nil {
		return nil, err
	}
	s := &Set{dir: dir, memories: make(map[imgfile.MemoryID]*Memory, len(ids))}
	read := imgfile.Stamps{}
	for _, id := range ids {
		if s.memories[id], err = fromFiles(dir, id, read); err != nil {
			return nil, err
		}
	}
	return s, read.Changed()
}

// OfImage is the set that an image of ours was made of. The image stays the
// caller's.
func OfImage(ctx context.Context, im *image.Image) (*Set, error) {
	ix, err := im.LoadIndex(ctx)
	if err != nil {
		return nil, err
	}
	return &Set{im: im, ix: ix, memories: map[imgfile.MemoryID]*Memory{}, checked: map[string]bool{}}, nil
}

// Close closes the files that are open. Nothing may be read any more.
func (s *Set) Close() error { return s.files.close() }

// A Memory says where the pages of a task or a shared memory object are.
type Memory struct {
	ID   imgfile.MemoryID
	runs []run // ascending
}

// A run is adjacent pages that lie together.
type run struct {
	page.Range
	lazy  bool
	from  *origin   // nil: frames of the image
	off   int64     // of the first page there
	image page.Addr // of the first page, in frames
}

// Memory is the memory of id; fs.ErrNotExist where the set has none.
func (s *Set) Memory(ctx context.Context, id imgfile.MemoryID) (*Memory, error) {
	s.mu.Lock()
	m := s.memories[id]
	s.mu.Unlock()
	if m != nil {
		return m, nil
	}
	if s.dir != nil {
		return nil, &fs.PathError{Op: "open", Path: s.dir.File(id.File()), Err: fs.ErrNotExist}
	}
	m, err := s.fromImage(ctx, id)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.memories[id] = m
	return m, nil
}

// fromFiles is a memory of the set in dir; the pagemaps that it is by are noted in read.
func fromFiles(dir *imgfile.Dir, id imgfile.MemoryID, read imgfile.Stamps) (*Memory, error) {
	from, err := dir.Memory(id)
	if err != nil {
		return nil, err
	}
	maps.Copy(read, from.Pagemaps)
	m := &Memory{ID: id, runs: make([]run, 0, len(from.Runs))}
	origins := make([]*origin, len(from.Files))
	for _, r := range from.Runs {
		if r.File == imgfile.Elsewhere {
			continue // whoever dumped it has them
		}
		if origins[r.File] == nil {
			if origins[r.File], err = originOf(from.Files[r.File]); err != nil {
				return nil, err
			}
		}
		m.runs = append(m.runs, run{Range: r.Range, lazy: r.Lazy, from: origins[r.File], off: r.Offset})
	}
	if origins[0] == nil { // it has nothing, or the pagemap is cut
		if _, err := originOf(from.Files[0]); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return m, nil
}

func (s *Set) fromImage(ctx context.Context, id imgfile.MemoryID) (*Memory, error) {
	name := id.File()
	if _, ok := s.im.Manifest().Objects[name]; !ok {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	b, err := s.im.ReadObject(ctx, name)
	if err != nil {
		return nil, err
	}
	pm, err := imgfile.ReadPagemap(bytes.NewReader(b), name)
	if err != nil {
		return nil, err
	}
	m := &Memory{ID: id, runs: make([]run, 0, len(pm.Entries))}
	object := &origin{path: imgfile.PagesName(pm.PagesID)}
	var off int64
	for e, err := range pm.InImage(name) {
		switch {
		case err != nil:
			return nil, err
		case e.Flags&imgfile.Present != 0:
			m.runs = append(m.runs, run{Range: e.Range, from: object, off: off})
			off += int64(e.Len())
		default:
			m.runs = append(m.runs, run{Range: e.Range, lazy: true, image: e.At})
		}
	}
	return m, nil
}

// find is the index of the run that holds at, or of the one after it.
func (m *Memory) find(at page.Addr) int {
	return sort.Search(len(m.runs), func(i int) bool { return m.runs[i].End > at })
}

// Extent is how much of r, from its start on, the set has without a gap.
func (m *Memory) Extent(r page.Range) page.Range {
	end := r.Start
	for i := m.find(r.Start); i < len(m.runs) && end < r.End && m.runs[i].Start <= end; i++ {
		end = min(m.runs[i].End, r.End)
	}
	return page.Range{Start: r.Start, End: end}
}

// Parts are the ranges of the memory and whether they may come late, ascending.
func (m *Memory) Parts(yield func(page.Range, bool) bool) {
	for _, r := range m.runs {
		if !yield(r.Range, r.lazy) {
			return
		}
	}
}

// ErrNoPage is wrapped by the error for a page that the set has not got.
var ErrNoPage = errors.New("no such page in the image set")
