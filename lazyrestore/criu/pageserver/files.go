package pageserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pageset"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
)

// Files is a Target that makes an image set as CRIU's page server does. The
// files are put into the directory of the set when all of them are complete; until
// then what was there before stays.
type Files struct {
	dir    *imgfile.Dir
	link   string // to be made; "": none
	parent parent

	stage *imgfile.Dir
	lock  *os.File // the stage
	w     *imgfile.MemoryWriter
	names []string // of complete files

	next     uint32          // the next number of a pages file to try
	reserved map[string]bool // pages files in the directory of the set that are empty yet

	placed []string // what place has put into the directory of the set
}

// NewFiles starts an image set in the directory dir, which has to exist. If
// prev is not empty, it is the set that this one builds on, relative to dir.
func NewFiles(dir, prev string) (*Files, error) {
	f := &Files{next: firstPagesID, reserved: map[string]bool{}}
	var err error
	if f.dir, err = imgfile.Open(dir); err != nil {
		return nil, err
	}
	if isImage(f.dir) {
		return nil, fmt.Errorf("%s: %w", f.dir.Path(), errImageThere)
	}
	if err := f.linkTo(prev); err != nil {
		return nil, err
	}
	removeStages(f.dir.Path())
	if err := f.makeStage(); err != nil {
		return nil, err
	}
	return f, nil
}

// errImageThere is for one that a dump into its directory would damage: it has the files of a set, and sums of them.
var errImageThere = errors.New("it is an image of lazyrestore, which nothing may change: name another directory")

// isImage reports whether an image of ours is in the directory.
func isImage(dir *imgfile.Dir) bool {
	_, err := os.Lstat(dir.File(image.ManifestObject))
	return !errors.Is(err, fs.ErrNotExist)
}

// errImageBelow is for an image of ours, whose lazy pages are in no file of CRIU's.
var errImageBelow = errors.New("CRIU's own files cannot build on a compressed image; with --codec another one does, and lazyrestore export makes files of it")

// linkTo finds the set that this one builds on: prev, or the one that the
// directory already says.
func (f *Files) linkTo(prev string) error {
	there, err := os.Readlink(f.dir.File(imgfile.ParentLink))
	switch {
	case err == nil && prev != "" && there != prev:
		return fmt.Errorf("%s is a link to %s, and the set is to build on %s", f.dir.File(imgfile.ParentLink), there, prev)
	case err == nil:
		prev = there
	case !errors.Is(err, fs.ErrNotExist):
		return err
	case prev == "":
		return nil
	default:
		f.link = prev
	}
	if err := f.buildOn(prev); err != nil {
		said := "--prev-images-dir"
		if f.link == "" {
			said = f.dir.File(imgfile.ParentLink)
		}
		return fmt.Errorf("the image set to build on (%s): %w", said, err)
	}
	return nil
}

// buildOn opens the set that this one builds on.
func (f *Files) buildOn(path string) error {
	if !filepath.IsAbs(path) {
		path = f.dir.File(path)
	}
	below, err := imgfile.Open(path)
	if err != nil {
		return err
	}
	if isImage(below) {
		return fmt.Errorf("%s: %w", below.Path(), errImageBelow)
	}
	set, err := pageset.OfFiles(below)
	if err != nil {
		return err
	}
	f.parent = newParent(set)
	return nil
}

// HasParent is Target's.
func (f *Files) HasParent(ctx context.Context, id imgfile.MemoryID) (bool, error) {
	return f.parent.has(ctx, id)
}

// Begin is Target's.
func (f *Files) Begin(ctx context.Context, id imgfile.MemoryID) error {
	if err := f.end(); err != nil {
		return err
	}
	if err := f.parent.begin(ctx, id); err != nil {
		return err
	}
	number, err := f.reserve()
	if err != nil {
		return err
	}
	w, err := f.stage.CreateMemory(id, number)
	if err != nil {
		return err
	}
	f.w = w
	if err := f.alone(ctx, id); err != nil {
		return err
	}
	// The pages file first: a set that has a pagemap has its pages.
	f.names = append(f.names, imgfile.PagesName(number), id.File())
	return nil
}

// Add is Target's.
func (f *Files) Add(_ context.Context, e imgfile.Entry, r io.Reader) error {
	if err := checkFlags(e.Flags, true); err != nil {
		return err
	}
	if e.Flags&imgfile.Parent != 0 {
		if err := f.parent.check(e.Range); err != nil {
			return err
		}
	}
	if e.Flags&imgfile.Present != 0 {
		return f.w.Write(e, r)
	}
	return f.w.Add(e)
}

// end completes the memory that was begun last.
func (f *Files) end() error {
	if f.w == nil {
		return nil
	}
	w := f.w
	f.w = nil
	return errors.Join(w.Sync(), w.Close())
}

// Commit is Target's. After an error nothing of the dump is left in the directory but the link to
// the set below: dumps of others may build on it by now.
func (f *Files) Commit(context.Context) error {
	if err := f.end(); err != nil {
		return err
	}
	if err := f.place(); err != nil {
		return errors.Join(err, f.retract())
	}
	f.Abort() // nothing of the dump is left in it
	return nil
}

// place puts the complete files into the directory.
func (f *Files) place() error {
	// First, for it may be refused, and clear takes away what was there.
	if err := f.placeLink(); err != nil {
		return err
	}
	if err := f.clear(); err != nil {
		return err
	}
	for _, name := range f.names {
		if err := os.Rename(f.stage.File(name), f.dir.File(name)); err != nil {
			return err
		}
		delete(f.reserved, name)
		f.placed = append(f.placed, name)
	}
	d, err := os.Open(f.dir.Path())
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// placeLink makes the link to the set below, unless another server has made the same meanwhile.
func (f *Files) placeLink() error {
	if f.link == "" {
		return nil
	}
	err := f.dir.LinkParent(f.link)
	if errors.Is(err, fs.ErrExist) {
		if there, err := os.Readlink(f.dir.File(imgfile.ParentLink)); err == nil && there == f.link {
			return nil
		}
	}
	return err
}

// retract takes back what place has done, a pagemap before its pages. On a disk that
// takes no more all of it fails for the one reason.
func (f *Files) retract() error {
	for _, name := range slices.Backward(f.placed) {
		if err := os.Remove(f.dir.File(name)); err != nil {
			return err
		}
	}
	return nil
}

// clear removes the pagemaps that are to be replaced, before one of these is: if this
// process is killed halfway, the dump is seen to be incomplete, and not taken for one that
// is partly of another time. Other pagemaps stay, but for what is about a number of ours, whose
// pages were not there. Pages files that no pagemap is about any more go into the stage, with which
// they are removed, also if this process is killed or the dump fails: nobody else would find them.
func (f *Files) clear() error {
	ids, err := f.dir.Memories()
	if err != nil {
		return err
	}
	ours := make(map[string]bool, len(f.names))
	for _, name := range f.names {
		ours[name] = true
	}
	about := map[string]bool{} // pages files: whether a pagemap is that stays
	for _, id := range ids {
		replaced := ours[id.File()]
		if pm, err := f.dir.Pagemap(id); err == nil {
			pages := imgfile.PagesName(pm.PagesID)
			replaced = replaced || ours[pages]
			if pm.PagesID >= firstPagesID && !ours[pages] {
				about[pages] = about[pages] || !replaced
			}
		}
		if !replaced {
			continue
		}
		// In the stage it tells which pages go, if this process is killed before they have gone.
		from := f.dir.File(id.File())
		if os.Rename(from, f.stage.File(oldPrefix+id.File())) != nil {
			if err := os.Remove(from); err != nil {
				return err
			}
		}
	}
	for pages, stays := range about {
		// An empty one is left: another server may have reserved the number, where the pages were gone.
		if st, err := os.Lstat(f.dir.File(pages)); !stays && err == nil && st.Size() > 0 {
			os.Rename(f.dir.File(pages), f.stage.File(oldPrefix+pages)) // what cannot be moved does no harm
		}
	}
	return nil
}

// Abort is Target's.
func (f *Files) Abort() {
	if f.lock == nil {
		return
	}
	if f.w != nil {
		f.w.Close() // it is removed
	}
	os.RemoveAll(f.stage.Path()) // what cannot be removed the next server does
	f.release()
	f.lock.Close()
	f.parent.close()
	f.lock = nil
}
