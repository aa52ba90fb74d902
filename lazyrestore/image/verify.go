package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
)

// VerifyOptions are for Verify; the zero value verifies on all processors.
type VerifyOptions struct {
	Digest   string                   // that the image must have; empty: any
	Workers  int                      // that read and decode; 0 is one for each processor
	Progress func(done, total uint64) // bytes of objects read; called from several goroutines, but one at a time
}

// A Report is what Verify has found.
type Report struct {
	Digest   string
	Manifest *Manifest // nil where it cannot be read
	Frames   int       // checked
	Bytes    uint64    // of objects read
	Problems []*DamagedError
}

// OK reports whether the image is whole.
func (r *Report) OK() bool { return len(r.Problems) == 0 }

// maxProblems is how many problems a report lists; a longer list helps nobody.
const maxProblems = 10_000

// Verify reads all of an image and checks it: sizes and SHA-256 of objects,
// the index, checksum, digest and content of every frame, and the seek table.
// It goes on after a problem as long as there is something to check. Damage is
// in the report; the error is for all else: a newer format, a source that
// cannot be read, a context that is done.
func Verify(ctx context.Context, src Source, opts VerifyOptions) (Report, error) {
	if opts.Workers <= 0 {
		opts.Workers = runtime.GOMAXPROCS(0)
	}
	v := &verifier{opts: opts}
	im, err := Open(ctx, src, OpenOptions{Digest: opts.Digest})
	if err != nil {
		return v.rep, v.note(err)
	}
	im.pinned = true // so that frames are checked by their digests
	v.im, v.rep.Manifest, v.rep.Digest = im, im.manifest, im.digest
	for name, o := range im.manifest.Objects {
		v.total += uint64(o.Size)
		if name != im.pages {
			v.names = append(v.names, name)
		}
	}
	slices.Sort(v.names)
	for _, name := range v.names {
		if err := v.note(v.object(ctx, name)); err != nil {
			return v.rep, err
		}
	}
	ix, err := im.LoadIndex(ctx)
	if err != nil {
		return v.report(v.note(err))
	}
	if err := v.frames(ctx, ix); err != nil {
		return v.report(err)
	}
	return v.report(v.note(v.pagesEnd(ctx, ix)))
}

// A verifier is a Verify under way.
type verifier struct {
	im    *Image
	opts  VerifyOptions
	names []string // of objects that are hashed as a whole
	total uint64   // bytes of objects

	mu   sync.Mutex
	rep  Report // under mu
	last uint64 // bytes at the last progress, under mu
}

// note puts damage into the report, and gives every other error back.
func (v *verifier) note(err error) error {
	var d *DamagedError
	if !errors.As(err, &d) {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.rep.Problems) < maxProblems {
		v.rep.Problems = append(v.rep.Problems, d)
	}
	return nil
}

// report is the report with its problems in order of the image.
func (v *verifier) report(err error) (Report, error) {
	slices.SortStableFunc(v.rep.Problems, func(a, b *DamagedError) int { return a.Frame - b.Frame })
	return v.rep, err
}

// progress counts n more bytes.
func (v *verifier) progress(n int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.rep.Bytes += uint64(n)
	if v.opts.Progress != nil && (v.rep.Bytes-v.last >= 1<<20 || v.rep.Bytes == v.total) {
		v.last = v.rep.Bytes
		v.opts.Progress(v.rep.Bytes, v.total)
	}
}

// object reads an object and compares its SHA-256.
func (v *verifier) object(ctx context.Context, name string) error {
	size, err := v.im.objectSize(ctx, name)
	if err != nil {
		return err
	}
	h := sha256.New()
	if err := v.hash(ctx, h, name, size); err != nil {
		return err
	}
	if got, want := hex.EncodeToString(h.Sum(nil)), v.im.manifest.Objects[name].SHA256; got != want {
		return damaged(name, 0, "%w: it is %s, not %s", errWrongSum, got, want)
	}
	return nil
}

// hash reads an object of size bytes into h.
func (v *verifier) hash(ctx context.Context, h hash.Hash, name string, size int64) error {
	buf := make([]byte, min(size, 1<<20))
	for off := int64(0); off < size; off += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), size-off)]
		if err := v.im.src.ReadRange(ctx, name, buf, off, Background); err != nil {
			return readError(name, off, err)
		}
		h.Write(buf)
		v.progress(len(buf))
	}
	return nil
}

// frames checks every frame, on all workers.
func (v *verifier) frames(ctx context.Context, ix *Index) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range v.opts.Workers {
		wg.Go(func() {
			r := v.im.NewFrameReader(ix)
			defer r.Close()
			for ctx.Err() == nil {
				i := int(next.Add(1) - 1)
				if i >= ix.Frames() {
					return
				}
				_, err := r.Read(ctx, i, Background)
				if err := v.note(err); err != nil {
					cancel(err)
					return
				}
				v.progress(ix.Frame(i).Stored)
			}
		})
	}
	wg.Wait()
	v.rep.Frames = min(int(next.Load()), ix.Frames())
	return context.Cause(ctx)
}

// pagesEnd checks what follows the frames in the pages object: with zstd a
// seek table that lists them, else nothing.
func (v *verifier) pagesEnd(ctx context.Context, ix *Index) error {
	name, size := v.im.pages, v.im.manifest.Objects[v.im.pages].Size
	n := size - ix.pages
	want := int64(0)
	if v.im.codec == chunk.Zstd {
		want = chunk.SeekTableSize(ix.Frames())
	}
	if n != want {
		return damaged(name, ix.pages, "%d bytes after the last frame, not %d", n, want)
	}
	if n == 0 {
		return nil
	}
	b := make([]byte, n)
	if err := v.im.src.ReadRange(ctx, name, b, ix.pages, Background); err != nil {
		return readError(name, ix.pages, err)
	}
	v.progress(len(b))
	t, err := chunk.ParseSeekTable(b)
	if err != nil {
		return damaged(name, ix.pages, "%w", err)
	}
	for i := range ix.Frames() {
		f := ix.Frame(i)
		if stored, plain := t.Frame(i); int(stored) != f.Stored || int(plain) != f.Plain {
			return damaged(name, ix.pages, "seek table: frame %d has %d bytes for %d, not %d for %d", i, stored, plain, f.Stored, f.Plain)
		}
	}
	return nil
}
