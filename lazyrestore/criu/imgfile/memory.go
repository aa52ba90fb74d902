package imgfile

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// Pagemap reads the pagemap of id. The error is fs.ErrNotExist where the set
// has none.
func (d *Dir) Pagemap(id MemoryID) (*Pagemap, error) {
	f, err := OpenFile(d.File(id.File()))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	stamp, err := StampOf(f)
	if err != nil {
		return nil, err
	}
	pm, err := ReadPagemap(bufio.NewReaderSize(f, 64<<10), f.Name())
	if err != nil {
		return nil, err
	}
	pm.file, pm.stamp = f.Name(), stamp
	return pm, nil
}

// Elsewhere is the File of a Run whose pages no file of the chain holds.
const Elsewhere = -1

// A PagesFile is a pages file of a chain of sets.
type PagesFile struct {
	Path  string
	ID    uint32 // its number in its set
	Depth int    // of the set: 0 is the one that was opened, 1 its parent
	Size  int64  // what its pagemap says that it holds, in bytes

	pagemap string
	listed  Stamp // of the pagemap
}

// Open opens a pages file, which has to hold exactly what its pagemap lists: one of the
// two was cut, or they are not of one set, if not. And the pagemap has to be the one that
// was read: who dumps into a directory takes an old pagemap away before the pages change.
func (f PagesFile) Open() (*os.File, Stamp, error) {
	opened, err := OpenFile(f.Path)
	if err != nil {
		return nil, Stamp{}, err
	}
	stamp, err := StampOf(opened)
	if n := stamp.size; err == nil && n != f.Size {
		err = &DamagedError{File: f.Path, Offset: min(n, f.Size), Err: fmt.Errorf("%d bytes long, and its pagemap lists %d", n, f.Size)}
	}
	if err == nil {
		err = f.listed.changedAt(f.pagemap)
	}
	if err != nil {
		opened.Close() // only read from
		return nil, Stamp{}, err
	}
	return opened, stamp, nil
}

// A Run is adjacent pages of a memory that also lie together in one file.
type Run struct {
	page.Range
	Lazy   bool  // the set that was opened says that they may come late
	File   int   // which of Memory.Files holds them, or Elsewhere: a page server or an image of ours has them
	Offset int64 // of the first page in that file, in bytes
}

// A Memory says where each page of a task or a shared memory object is, in an
// image set and those that it builds on.
type Memory struct {
	ID    MemoryID
	Files []PagesFile
	Runs  []Run // ascending; pages in no run are zero
	// Pagemaps are those of the chain: Changed says whether the memory is of one time.
	Pagemaps Stamps
}

// Memory resolves where the pages of id are: those that are flagged as the
// parent's are looked for there, page by page, and so on down the chain. A
// page that no set of the chain has is a DamagedError. The error is
// fs.ErrNotExist where d has no pagemap for id.
func (d *Dir) Memory(id MemoryID) (*Memory, error) {
	m := &Memory{ID: id, Pagemaps: Stamps{}}
	var want []Run // not found yet, ascending
	below := map[string]bool{}
	for set, depth := d, 0; ; depth++ {
		if below[set.path] {
			return nil, &DamagedError{File: set.File(ParentLink), Err: errors.New("the image sets build on one another in a circle")}
		}
		below[set.path] = true
		pm, err := set.Pagemap(id)
		switch {
		case depth > 0 && errors.Is(err, fs.ErrNotExist):
			pm = new(Pagemap) // the task is younger than that set
		case err != nil:
			return nil, err
		case depth == 0:
			want = wholeOf(pm)
		}
		if want, err = m.find(set, pm, want); err != nil {
			return nil, err
		}
		if len(want) == 0 {
			break
		}
		parent, err := set.Parent()
		if err != nil {
			return nil, err
		}
		if parent == nil {
			return nil, &DamagedError{
				File: set.File(id.File()),
				Err:  fmt.Errorf("pages %v are in the set that this one builds on, and there is none", want[0].Range),
			}
		}
		set = parent
	}
	slices.SortFunc(m.Runs, func(a, b Run) int {
		if a.Start < b.Start {
			return -1
		}
		return 1
	})
	return m, nil
}

// wholeOf is a run to be found for each entry of pm.
func wholeOf(pm *Pagemap) []Run {
	want := make([]Run, 0, len(pm.Entries))
	for _, e := range pm.Entries {
		want = append(want, Run{Range: e.Range, Lazy: e.Flags&Lazy != 0})
	}
	return want
}

// find adds what pm, of set, holds of want to m's runs, and gives what its
// parent has to have.
func (m *Memory) find(set *Dir, pm *Pagemap, want []Run) (rest []Run, err error) {
	name := set.File(m.ID.File())
	file := len(m.Files)
	var off int64 // in the pages file
	i := 0
	for _, e := range pm.Entries {
		for i < len(want) && want[i].End <= e.Start {
			return nil, missing(name, want[i].Range)
		}
		for i < len(want) && want[i].Start < e.End {
			w := &want[i]
			if w.Start < e.Start {
				return nil, missing(name, page.Range{Start: w.Start, End: e.Start})
			}
			part := *w
			part.End = min(w.End, e.End)
			switch {
			case e.Flags&Parent != 0:
				rest = append(rest, part)
			case e.Flags&Present != 0:
				part.File, part.Offset = file, off+int64(part.Start-e.Start)
				m.Runs = append(m.Runs, part)
			default:
				part.File = Elsewhere
				m.Runs = append(m.Runs, part)
			}
			if part.End < w.End {
				w.Start = part.End
				break
			}
			i++
		}
		if e.Flags&Present != 0 {
			off += int64(e.Len())
		}
	}
	if i < len(want) {
		return nil, missing(name, want[i].Range)
	}
	m.Files = append(m.Files, PagesFile{set.File(PagesName(pm.PagesID)), pm.PagesID, file, off, pm.file, pm.stamp})
	if pm.file != "" {
		m.Pagemaps[pm.file] = pm.stamp
	}
	return rest, nil
}

// missing says that a set lacks pages that one above it takes from there.
func missing(name string, r page.Range) error {
	return &DamagedError{File: name, Err: fmt.Errorf("pages %v, which a set that builds on this one takes from here, are not listed", r)}
}
