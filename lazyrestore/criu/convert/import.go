package convert

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pageset"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// An importer makes an image of one set.
type importer struct {
	dir   *imgfile.Dir
	w     *image.Writer
	pages *pageset.Reader
	set   *pageset.Set

	free chan []byte     // pieces to read into
	took map[string]bool // files of the set that need no copy
}

// pieces is how many pieces are on their way at once.
const pieces = 4

// Import puts an image set into w; Finish, or Abort on an error, is the
// caller's. The manifest it is to finish with says what is known of the tasks.
// Errors wrap imgfile.ErrDamaged, ErrUnfit, or are those of files and writer.
func Import(ctx context.Context, dir *imgfile.Dir, w *image.Writer) (image.Manifest, error) {
	var none image.Manifest
	if _, err := os.Lstat(dir.File(image.ManifestObject)); err == nil {
		return none, unfit(dir.Path(), "it is an image of ours")
	}
	start, err := dir.Stamps()
	if err != nil {
		return none, err
	}
	set, err := pageset.OfFiles(dir)
	if err != nil {
		return none, err
	}
	defer set.Close()
	im := &importer{dir: dir, w: w, set: set, pages: set.NewReader(), free: make(chan []byte, pieces), took: map[string]bool{}}
	defer im.pages.Close()
	for range pieces {
		im.free <- make([]byte, pieceBytes)
	}
	memories, err := im.memories()
	if err != nil {
		return none, err
	}
	for _, m := range memories {
		if err := im.memory(ctx, m); err != nil {
			return none, fmt.Errorf("import %s: %w", m.id.File(), err)
		}
	}
	if err := im.others(ctx); err != nil {
		return none, err
	}
	m, err := describe(dir)
	if err != nil {
		return none, err
	}
	// Files were read one after another, and some of them more than once.
	return m, dir.Changed(start)
}

// A source is a memory to be imported.
type source struct {
	id imgfile.MemoryID
	pm *imgfile.Pagemap
}

// memories is all memories of the set, in the order of their pages files:
// that is the order of image addresses.
func (im *importer) memories() ([]source, error) {
	ids, err := im.dir.Memories()
	if err != nil {
		return nil, err
	}
	if len(ids) == 0 {
		return nil, unfit(im.dir.Path(), "no pagemap is in it: this is not an image set, or its memory is with a page server")
	}
	var all []source
	for _, id := range ids {
		pm, err := im.dir.Pagemap(id)
		if err != nil {
			return nil, err
		}
		if pm.PagesID > imgfile.MaxPagesID {
			return nil, unfit(id.File(), "the number of its pages file, %d, is above %d", pm.PagesID, imgfile.MaxPagesID)
		}
		all = append(all, source{id, pm})
		im.took[id.File()] = true
		im.took[imgfile.PagesName(pm.PagesID)] = true
	}
	slices.SortFunc(all, func(a, b source) int { return int(a.pm.PagesID) - int(b.pm.PagesID) })
	for i := 1; i < len(all); i++ {
		if all[i].pm.PagesID == all[i-1].pm.PagesID {
			return nil, unfit(all[i].id.File(), "it shares its pages file with %s", all[i-1].id.File())
		}
	}
	return all, nil
}

// memory imports the pagemap and the pages of one memory.
func (im *importer) memory(ctx context.Context, m source) error {
	from, err := im.set.Memory(ctx, m.id)
	if err != nil {
		return err
	}
	for _, e := range m.pm.Entries {
		if have := from.Extent(e.Range); have != e.Range {
			return unfit(m.id.File(), "pages from %s on are in no file: a set was dumped with --lazy-pages, and whoever did has them, "+
				"or one that this builds on is an image of lazyrestore, of which export makes a set", have.End)
		}
	}
	late, err := mayBeLate(im.dir, m.id)
	if err != nil {
		return err
	}
	entries := standing(m.pm.Entries, &late)
	if err := im.pagemap(m, entries); err != nil {
		return err
	}
	eager, err := im.w.Object(imgfile.PagesName(m.pm.PagesID))
	if err != nil {
		return err
	}
	placed := imgfile.Pagemap{PagesID: m.pm.PagesID, Entries: entries}
	for e, err := range placed.InImage(m.id.File()) {
		if err != nil {
			return unfit(m.id.File(), "%v", err)
		}
		var to io.Writer
		if e.Flags&imgfile.Lazy == 0 {
			to = eager
		}
		if err := im.run(ctx, from, e.Range, e.At, to); err != nil {
			return err
		}
	}
	return eager.Close()
}

// run copies adjacent pages into an object, or into the frames at an address.
func (im *importer) run(ctx context.Context, from *pageset.Memory, r page.Range, at page.Addr, object io.Writer) error {
	for !r.Empty() {
		buf := <-im.free
		n := min(r.Len(), pieceBytes)
		if err := im.pages.Read(ctx, from, r.Start, buf[:n], image.Background); err != nil {
			im.free <- buf
			return err
		}
		if object != nil {
			_, err := object.Write(buf[:n])
			im.free <- buf
			if err != nil {
				return err
			}
		} else if err := im.w.WriteRun(ctx, at, buf[:n], func() { im.free <- buf }); err != nil {
			return err
		}
		r.Start, at = r.Start+page.Addr(n), at+page.Addr(n)
	}
	return nil
}

// pagemap writes the pagemap of a memory as the image has it: with the entries
// given if the set builds on another.
func (im *importer) pagemap(m source, entries []imgfile.Entry) error {
	w, err := im.w.Object(m.id.File())
	if err != nil {
		return err
	}
	if slices.ContainsFunc(m.pm.Entries, func(e imgfile.Entry) bool { return e.Flags&imgfile.Parent != 0 }) {
		err = writePagemap(w, m.pm.PagesID, entries)
	} else {
		err = im.patch(w, m.id)
	}
	return errors.Join(err, w.Close())
}

// patch copies a pagemap, but for the flag of lazy pages.
func (im *importer) patch(w io.Writer, id imgfile.MemoryID) error {
	b, err := os.ReadFile(im.dir.File(id.File()))
	if err != nil {
		return err
	}
	if err := patchPagemap(b, id.File(), false); err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

// patchPagemap sets or takes the flag Present of all lazy entries of a pagemap.
func patchPagemap(b []byte, name string, present bool) error {
	rd := bytes.NewReader(b)
	r, err := imgfile.NewReader(rd, name, imgfile.MagicPagemap)
	if err != nil {
		return err
	}
	for head := true; ; head = false {
		record, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if head {
			continue
		}
		end := len(b) - rd.Len()
		if err := setPresent(b[end-len(record):end], present); err != nil {
			return &imgfile.DamagedError{File: name, Offset: int64(end - len(record)), Err: err}
		}
	}
}

// writePagemap writes a pagemap anew.
func writePagemap(w io.Writer, pagesID uint32, entries []imgfile.Entry) error {
	pw, err := imgfile.NewPagemapWriter(w, pagesID)
	for i := 0; err == nil && i < len(entries); i++ {
		err = pw.Write(entries[i])
	}
	return err
}

// isOfARestore reports whether a file of that name is not of the dump, or is none that a restore needs, and may be what
// a restore writes: criu restore does its statistics, and lazy-pages what it keeps, in the directory that the
// images are in unless told otherwise, as both do logs and pid files. In the image it would be another one than its
// manifest says as soon as something is restored from there: damage, for all who check or export the image.
func isOfARestore(name string) bool {
	switch filepath.Ext(name) {
	case ".log", ".pid":
		return true
	}
	return name == "stats-restore" || strings.HasPrefix(name, "lazy-pages.")
}

// others copies the files of the set that are not about memory.
func (im *importer) others(ctx context.Context) error {
	entries, err := os.ReadDir(im.dir.Path())
	if err != nil {
		return err
	}
	for _, e := range entries {
		switch {
		case im.took[e.Name()], e.Name() == imgfile.ParentLink, e.Type() == fs.ModeSocket:
			continue // sockets are of a daemon that was there
		case e.Type().IsRegular() && isOfARestore(e.Name()):
			continue
		case !e.Type().IsRegular():
			return unfit(im.dir.File(e.Name()), "it is no regular file")
		}
		if err := im.dir.Check(e.Name()); err != nil {
			return err
		}
		if err := im.copy(ctx, e.Name()); err != nil {
			return err
		}
	}
	return nil
}

func (im *importer) copy(ctx context.Context, name string) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	f, err := imgfile.OpenFile(im.dir.File(name))
	if err != nil {
		return err
	}
	defer f.Close()
	w, err := im.w.Object(name)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return errors.Join(err, w.Close())
}

// describe is a manifest with what the set says of its tasks.
func describe(dir *imgfile.Dir) (image.Manifest, error) {
	var m image.Manifest
	tasks, err := dir.Tasks()
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil // what a page server received
	}
	if err != nil {
		return m, err
	}
	if _, err := dir.Inventory(); err != nil {
		return m, err // which every set with tasks has
	}
	for i, t := range tasks {
		if i == 0 {
			m.Process.PID = t.Pid
		}
		m.Process.Threads += len(t.Threads)
		vmas, err := dir.VMAs(t.Pid)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return m, err
		}
		m.Process.Mappings += len(vmas)
	}
	return m, nil
}
