package pageset

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// A Reader reads pages of a Set. It belongs to one goroutine.
type Reader struct {
	s      *Set
	frames *image.FrameReader // nil without an image
	frame  int                // whose data plain is; -1: none
	plain  []byte
}

// NewReader is a reader of the set's pages.
func (s *Set) NewReader() *Reader {
	r := &Reader{s: s, frame: -1}
	if s.im != nil {
		r.frames = s.im.NewFrameReader(s.ix)
	}
	return r
}

// Close frees what the reader holds.
func (r *Reader) Close() {
	if r.frames != nil {
		r.frames.Close()
	}
}

// Read fills p with the pages of m from at on, of which the set has to have
// all: ErrNoPage where it has not. Pages out of an image of ours have been
// checked.
func (r *Reader) Read(ctx context.Context, m *Memory, at page.Addr, p []byte, lane image.Lane) error {
	for i := m.find(at); len(p) > 0; i++ {
		if i == len(m.runs) || m.runs[i].Start > at {
			return fmt.Errorf("%s: page %s: %w", m.ID.File(), at, ErrNoPage)
		}
		from := &m.runs[i]
		in := at - from.Start
		n := min(len(p), int(min(from.Len()-uint64(in), uint64(len(p)))))
		if err := r.run(ctx, from, in, p[:n], lane); err != nil {
			return err
		}
		at, p = at+page.Addr(n), p[n:]
	}
	return nil
}

// run fills p with the bytes of a run from in on.
func (r *Reader) run(ctx context.Context, from *run, in page.Addr, p []byte, lane image.Lane) error {
	switch {
	case from.from == nil:
		return r.image(ctx, from.image+in, p, lane)
	case r.s.dir != nil:
		return r.s.files.read(from.from, p, from.off+int64(in))
	}
	if err := r.s.checkObject(ctx, from.from.path); err != nil {
		return err
	}
	return r.s.im.Source().ReadRange(ctx, from.from.path, p, from.off+int64(in), lane)
}

// image fills p from the frames of an image.
func (r *Reader) image(ctx context.Context, at page.Addr, p []byte, lane image.Lane) error {
	for run := range r.s.ix.RunsIn(page.RangeOf(at, uint64(len(p)))) {
		if zero := int(min(run.Page-min(run.Page, at), page.Addr(len(p)))); zero > 0 {
			clear(p[:zero])
			at, p = at+page.Addr(zero), p[zero:]
		}
		n := min(len(p), int(run.Range().End-at))
		if run.Kind == image.Zero {
			clear(p[:n])
		} else {
			plain, err := r.load(ctx, int(run.Frame), lane)
			if err != nil {
				return err
			}
			in := int(run.Offset)<<page.Shift + int(at-run.Page)
			copy(p[:n], plain[in:])
		}
		at, p = at+page.Addr(n), p[n:]
	}
	clear(p)
	return nil
}

// load is the plain data of a frame; the last one is kept.
func (r *Reader) load(ctx context.Context, frame int, lane image.Lane) ([]byte, error) {
	if frame == r.frame {
		return r.plain, nil
	}
	r.frame = -1
	plain, err := r.frames.Read(ctx, frame, lane)
	if err != nil {
		return nil, err
	}
	r.frame, r.plain = frame, plain
	return plain, nil
}

// checkObject compares an object of the image with the manifest, once.
func (s *Set) checkObject(ctx context.Context, name string) error {
	s.mu.Lock()
	done := s.checked[name]
	s.mu.Unlock()
	if done {
		return nil
	}
	if err := CopyObject(ctx, io.Discard, s.im, name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.checked[name] = true
	return nil
}

var errSum = errors.New("SHA-256 mismatch")

// CopyObject copies an object of an image other than the frames, piece by
// piece. If the error is nil, it was as the manifest says.
func CopyObject(ctx context.Context, w io.Writer, im *image.Image, name string) error {
	want, ok := im.Manifest().Objects[name]
	if !ok || want.SHA256 == "" {
		return fmt.Errorf("object %s of the image cannot be copied", name)
	}
	size, err := im.Source().Size(ctx, name)
	if err != nil {
		return err
	}
	if size != want.Size {
		return &image.DamagedError{Object: name, Frame: image.NoFrame, Err: fmt.Errorf("%d bytes long, not %d", size, want.Size)}
	}
	sum := sha256.New()
	buf := make([]byte, min(size, 1<<20))
	for off := int64(0); off < size; {
		p := buf[:min(size-off, int64(len(buf)))]
		if err := im.Source().ReadRange(ctx, name, p, off, image.Background); err != nil {
			return err
		}
		sum.Write(p)
		if _, err := w.Write(p); err != nil {
			return err
		}
		off += int64(len(p))
	}
	if hex.EncodeToString(sum.Sum(nil)) != want.SHA256 {
		return &image.DamagedError{Object: name, Frame: image.NoFrame, Err: errSum}
	}
	return nil
}

// shortened is the error for a pages file that ends before its pages.
func shortened(path string, off int64) error {
	return &imgfile.DamagedError{File: path, Offset: off, Err: io.ErrUnexpectedEOF}
}
