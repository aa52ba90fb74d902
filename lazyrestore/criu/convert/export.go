package convert

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pageset"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// Export puts the image set that im was made of into out. All that is
// exported has been checked; if the error is not nil, what out holds is of no
// use. Errors wrap image.ErrDamaged, imgfile.ErrDamaged, ErrUnfit, or are those
// of the image's source and of out.
func Export(ctx context.Context, im *image.Image, out image.Sink) error {
	objects := im.Manifest().Objects
	if _, ok := objects[image.ProcessObject]; ok {
		return unfit("image", "it was not made of CRIU's images, but of a process, by checkpoint")
	}
	set, err := pageset.OfImage(ctx, im)
	if err != nil {
		return err
	}
	defer set.Close()
	e := &exporter{im: im, set: set, pages: set.NewReader(), out: out, buf: make([]byte, pieceBytes)}
	defer e.pages.Close()
	done := map[string]bool{image.IndexObject: true, im.PagesObject(): true}
	names := slices.Sorted(maps.Keys(objects))
	for _, name := range names {
		if id, ok := imgfile.ParseFile(name); ok {
			pages, err := e.memory(ctx, id)
			if err != nil {
				return fmt.Errorf("export %s: %w", name, err)
			}
			done[name], done[pages] = true, true
		}
	}
	if len(done) == 2 {
		return unfit("image", "no pagemap is in it: it was not made of CRIU's images")
	}
	for _, name := range names {
		if done[name] {
			continue
		}
		if err := e.object(name, func(w io.Writer) error { return pageset.CopyObject(ctx, w, im, name) }); err != nil {
			return fmt.Errorf("export %s: %w", name, err)
		}
	}
	return nil
}

type exporter struct {
	im    *image.Image
	set   *pageset.Set
	pages *pageset.Reader
	out   image.Sink
	buf   []byte
}

// object makes a file, which write fills.
func (e *exporter) object(name string, write func(io.Writer) error) error {
	w, err := e.out.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(write(w), w.Close())
}

// memory exports a pagemap and its pages file, whose name it gives.
func (e *exporter) memory(ctx context.Context, id imgfile.MemoryID) (pages string, err error) {
	b, err := e.im.ReadObject(ctx, id.File())
	if err != nil {
		return "", err
	}
	pm, err := imgfile.ReadPagemap(bytes.NewReader(b), id.File())
	if err != nil {
		return "", err
	}
	pages = imgfile.PagesName(pm.PagesID)
	if _, ok := e.im.Manifest().Objects[pages]; !ok {
		return "", &image.DamagedError{Object: pages, Frame: image.NoFrame, Err: errors.New("the image has no such object")}
	}
	if err := patchPagemap(b, id.File(), true); err != nil {
		return "", err
	}
	write := func(w io.Writer) error { _, err := w.Write(b); return err }
	if err := e.object(id.File(), write); err != nil {
		return "", err
	}
	m, err := e.set.Memory(ctx, id)
	if err != nil {
		return "", err
	}
	return pages, e.object(pages, func(w io.Writer) error {
		for r := range m.Parts {
			if err := e.run(ctx, w, m, r); err != nil {
				return err
			}
		}
		return nil
	})
}

// run copies adjacent pages.
func (e *exporter) run(ctx context.Context, w io.Writer, m *pageset.Memory, r page.Range) error {
	for !r.Empty() {
		p := e.buf[:min(r.Len(), pieceBytes)]
		if err := e.pages.Read(ctx, m, r.Start, p, image.Background); err != nil {
			return err
		}
		if _, err := w.Write(p); err != nil {
			return err
		}
		r.Start += page.Addr(len(p))
	}
	return nil
}
