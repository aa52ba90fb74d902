package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

var (
	errChecksum = errors.New("checksum mismatch")
	errFrameSHA = errors.New("SHA-256 mismatch")
)

// A FrameReader reads frames: fetches, checks and decodes them. It belongs to
// one goroutine; make one per worker. It holds memory for the largest span it
// has read, and none before the first read.
type FrameReader struct {
	im     *Image
	ix     *Index
	now    Immediate // nil where the source is none
	soon   Prompt    // the same
	dec    *chunk.Decoder
	stored []byte
	plain  []byte

	// Decoding, if set, is called between the two parts of each read: the
	// source has given the bytes, and they are about to be checked and decoded.
	Decoding func()
}

// NewFrameReader is a reader for the image's frames, as ix lists them.
func (im *Image) NewFrameReader(ix *Index) *FrameReader {
	now, _ := im.src.(Immediate)
	soon, _ := im.src.(Prompt)
	return &FrameReader{im: im, ix: ix, now: now, soon: soon, dec: chunk.NewDecoder(im.codec)}
}

// Read gives the plain data of a frame, every byte of it checked. The data is
// the reader's and lasts until its next call. A frame that fails its check is
// a DamagedError with its addresses; the source has then been told.
func (r *FrameReader) Read(ctx context.Context, frame int, lane Lane) ([]byte, error) {
	return r.ReadSpan(ctx, frame, 1, lane)
}

// ReadSpan is Read for n frames from first on, with one read of the source:
// their plain data one after the other. One bad frame fails the span.
func (r *FrameReader) ReadSpan(ctx context.Context, first, n int, lane Lane) ([]byte, error) {
	off, size := r.span(first, n)
	r.stored = fit(r.stored, size)
	if err := r.im.src.ReadRange(ctx, r.im.pages, r.stored, off, lane); err != nil {
		err = readError(r.im.pages, off, err)
		return nil, fmt.Errorf("read frame %d: %w", first, err)
	}
	if r.Decoding != nil {
		r.Decoding()
	}
	return r.decode(first, n)
}

// ReadNow is Read where the source has the frame in memory, or gives it within
// moments (Prompt); where it has not,
// or cannot tell, ok is false.
func (r *FrameReader) ReadNow(frame int) (plain []byte, ok bool, err error) {
	if r.now == nil {
		return nil, false, nil
	}
	off, size := r.span(frame, 1)
	r.stored = fit(r.stored, size)
	ok, err = r.now.ReadNow(r.im.pages, r.stored, off)
	if !ok && err == nil && r.soon != nil {
		ok, err = r.soon.ReadSoon(r.im.pages, r.stored, off)
	}
	if err != nil {
		return nil, false, fmt.Errorf("read frame %d: %w", frame, readError(r.im.pages, off, err))
	}
	if !ok {
		return nil, false, nil
	}
	if r.Decoding != nil {
		r.Decoding()
	}
	plain, err = r.decode(frame, 1)
	return plain, err == nil, err
}

// ReadPartNow is ReadNow for n bytes, from off on, of a frame's plain data: of
// a plain image, whose frames are neither compressed nor checked as a whole.
// For others ok is false.
func (r *FrameReader) ReadPartNow(frame, off, n int) (plain []byte, ok bool, err error) {
	if r.now == nil || !r.ix.unchecked {
		return nil, false, nil
	}
	at, size := r.span(frame, 1)
	if off < 0 || n < 0 || off+n > size {
		return nil, false, fmt.Errorf("read frame %d: %w", frame, io.ErrUnexpectedEOF)
	}
	r.stored = fit(r.stored, n)
	at += int64(off)
	if ok, err = r.now.ReadNow(r.im.pages, r.stored, at); err != nil {
		return nil, false, fmt.Errorf("read frame %d: %w", frame, readError(r.im.pages, at, err))
	}
	if ok && r.Decoding != nil {
		r.Decoding()
	}
	return r.stored, ok, nil
}

// Close frees what the decoder holds.
func (r *FrameReader) Close() { r.dec.Close() }

// span is where n frames from first on are, in the pages object.
func (r *FrameReader) span(first, n int) (off int64, size int) {
	a, b := r.ix.Frame(first), r.ix.Frame(first+n-1)
	return a.Offset, int(b.Offset-a.Offset) + b.Stored
}

// fit is b with length n, in new memory where it has not the room.
func fit(b []byte, n int) []byte { return slices.Grow(b[:0], n)[:n] }

// decode checks and decodes the n frames that r.stored holds.
func (r *FrameReader) decode(first, n int) ([]byte, error) {
	if r.im.codec == chunk.None || n == 1 && r.im.codec != chunk.Zstd && r.ix.Frame(first).Raw {
		return r.checkRaw(first, n)
	}
	size := 0
	for i := first; i < first+n; i++ {
		size += r.ix.Frame(i).Plain
	}
	r.plain = fit(r.plain, size)
	in, out := r.stored, r.plain
	for i := first; i < first+n; i++ {
		f := r.ix.Frame(i)
		if err := r.check(i, f, in[:f.Stored]); err != nil {
			return nil, err
		}
		if err := r.dec.Decode(out[:f.Plain], in[:f.Stored], f.Raw); err != nil {
			return nil, r.bad(i, f, err)
		}
		in, out = in[f.Stored:], out[f.Plain:]
	}
	return r.plain, nil
}

// checkRaw is decode for frames whose stored bytes are their plain data.
func (r *FrameReader) checkRaw(first, n int) ([]byte, error) {
	in := r.stored
	for i := first; i < first+n; i++ {
		f := r.ix.Frame(i)
		if f.Stored != f.Plain {
			return nil, r.bad(i, f, chunk.ErrFrame)
		}
		if err := r.check(i, f, in[:f.Stored]); err != nil {
			return nil, err
		}
		in = in[f.Stored:]
	}
	return r.stored, nil
}

// check compares the sums of a frame's stored bytes with the index.
func (r *FrameReader) check(i int, f Frame, stored []byte) error {
	if r.ix.unchecked {
		return nil
	}
	if chunk.Checksum(stored) != f.Checksum {
		return r.bad(i, f, errChecksum)
	}
	if want, ok := r.ix.digest(i); ok && chunk.DigestOf(stored) != want {
		return r.bad(i, f, errFrameSHA)
	}
	return nil
}

// bad tells the source about a damaged frame and makes the error for it.
func (r *FrameReader) bad(i int, f Frame, err error) error {
	runs := r.ix.FrameRuns(i)
	err = &DamagedError{
		Object: r.im.pages, Offset: f.Offset, Frame: i, Err: err,
		Range: page.Range{Start: runs[0].Page, End: runs[len(runs)-1].Range().End},
	}
	r.im.reject(r.im.pages, f.Offset, int64(f.Stored), err)
	return err
}
