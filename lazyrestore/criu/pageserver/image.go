package pageserver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pageset"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// pieceBytes is how much is received and handed on at a time, and pieces how
// many of them are on their way.
const (
	pieceBytes = 1 << 20
	pieces     = 4
)

// Image is a Target that makes an image of ours, which stands alone: pages
// that the dump leaves to the set that it builds on are copied from there.
type Image struct {
	w      *image.Writer
	commit func(context.Context) error
	parent parent
	free   chan []byte
	next   uint32

	pagemap, eager io.WriteCloser // of the memory that was begun last; nil: none was
	buffer         *bufio.Writer  // in front of pagemap
	entries        *imgfile.PagemapWriter
	pending        imgfile.Entry // not written yet: what follows may continue it
	number         uint32        // of the pages file
	whole          int64         // bytes of the memory so far
}

// NewImage makes an image by w. prev is the set that dumps build on, or nil;
// it is closed with the target. commit finishes the image and puts it in its
// place. Abort aborts w; what it has written is the caller's to remove.
func NewImage(w *image.Writer, prev *pageset.Set, commit func(context.Context) error) *Image {
	t := &Image{w: w, commit: commit, free: make(chan []byte, pieces), next: firstPagesID}
	if prev != nil {
		t.parent = newParent(prev)
	}
	for range pieces {
		t.free <- make([]byte, pieceBytes)
	}
	return t
}

// HasParent is Target's.
func (t *Image) HasParent(ctx context.Context, id imgfile.MemoryID) (bool, error) {
	return t.parent.has(ctx, id)
}

// Begin is Target's.
func (t *Image) Begin(ctx context.Context, id imgfile.MemoryID) error {
	if err := t.end(); err != nil {
		return err
	}
	if t.next > imgfile.MaxPagesID {
		return fmt.Errorf("more than %d memories in one image", imgfile.MaxPagesID-firstPagesID)
	}
	if err := t.parent.begin(ctx, id); err != nil {
		return err
	}
	t.number, t.whole, t.pending = t.next, 0, imgfile.Entry{}
	t.next++
	var err error
	if t.pagemap, err = t.w.Object(id.File()); err != nil {
		return err
	}
	if t.eager, err = t.w.Object(imgfile.PagesName(t.number)); err != nil {
		return err
	}
	t.buffer = bufio.NewWriterSize(t.pagemap, 32<<10)
	t.entries, err = imgfile.NewPagemapWriter(t.buffer, t.number)
	return err
}

// Add is Target's.
func (t *Image) Add(ctx context.Context, e imgfile.Entry, r io.Reader) error {
	if err := checkFlags(e.Flags, false); err != nil {
		return err
	}
	switch {
	case e.Start < t.pending.End:
		return fmt.Errorf("pages %v come after those up to %s", e.Range, t.pending.End)
	case int64(e.Len()) > imgfile.MaxPagesBytes-t.whole:
		return fmt.Errorf("pages %v: a memory of more than %d bytes", e.Range, int64(imgfile.MaxPagesBytes))
	}
	fill := func(_ page.Addr, b []byte) error {
		_, err := io.ReadFull(r, b)
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	if e.Flags&imgfile.Parent != 0 {
		if err := t.parent.check(e.Range); err != nil {
			return err
		}
		fill = func(at page.Addr, b []byte) error { return t.parent.read(ctx, at, b) }
	}
	if err := t.pages(ctx, e, fill); err != nil {
		return err
	}
	return t.list(e)
}

// pages puts the pages of e into the image.
func (t *Image) pages(ctx context.Context, e imgfile.Entry, fill func(page.Addr, []byte) error) error {
	for r := e.Range; !r.Empty(); {
		n := min(r.Len(), pieceBytes)
		buf := <-t.free
		if err := fill(r.Start, buf[:n]); err != nil {
			t.free <- buf
			return err
		}
		if e.Flags&imgfile.Lazy == 0 {
			_, err := t.eager.Write(buf[:n])
			t.free <- buf
			if err != nil {
				return err
			}
		} else if err := t.w.WriteRun(ctx, imgfile.ImageAddr(t.number, t.whole), buf[:n], func() { t.free <- buf }); err != nil {
			return err
		}
		t.whole += int64(n)
		r.Start += page.Addr(n)
	}
	return nil
}

// list notes an entry of the pagemap: what is lazy is in the frames.
func (t *Image) list(e imgfile.Entry) error {
	if e.Flags&imgfile.Lazy != 0 {
		e.Flags = imgfile.Lazy
	} else {
		e.Flags = imgfile.Present
	}
	if !t.pending.Empty() && e.Start == t.pending.End && e.Flags == t.pending.Flags {
		t.pending.End = e.End
		return nil
	}
	if err := t.flush(); err != nil {
		return err
	}
	t.pending = e
	return nil
}

func (t *Image) flush() error {
	if t.pending.Empty() {
		return nil
	}
	return t.entries.Write(t.pending)
}

// end completes the memory that was begun last.
func (t *Image) end() error {
	if t.pagemap == nil {
		return nil
	}
	err := t.flush()
	if err == nil {
		err = t.buffer.Flush()
	}
	err = errors.Join(err, t.pagemap.Close(), t.eager.Close())
	t.pagemap = nil
	return err
}

var errNothing = errors.New("the dump has sent no memory")

// Commit is Target's.
func (t *Image) Commit(ctx context.Context) error {
	if t.next == firstPagesID {
		return errNothing
	}
	if err := t.end(); err != nil {
		return err
	}
	t.parent.close()
	return t.commit(ctx)
}

// Abort is Target's.
func (t *Image) Abort() {
	t.parent.close()
	t.w.Abort()
}
