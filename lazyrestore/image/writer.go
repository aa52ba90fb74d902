package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"runtime"
	"sync"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// WriterOptions are for NewWriter; the zero value writes images as they are
// written by default.
type WriterOptions struct {
	Spec      chunk.Spec // codec and level; the zero value is chunk.None
	ChunkSize int        // bytes of plain data in a frame: a power of two; 0 is chunk.DefaultSize
	Workers   int        // goroutines that encode; 0 is one for each processor
}

// Stats says what a Writer was given and what became of it.
type Stats struct {
	MemoryBytes uint64 // pages given to WriteRun
	ZeroBytes   uint64 // of them zero, and not stored
	LazyBytes   uint64 // of them stored
	StoredBytes uint64 // length of their frames
	Frames      uint64
	Runs        uint64
}

// A Result is what Finish has written.
type Result struct {
	Digest   string // of the image
	Manifest *Manifest
	Stats
}

// A Writer writes an image into a Sink: WriteRun for the memory, Object for
// everything else, Finish at the end or Abort. Its methods are called from one
// goroutine, but for the writers that Object returns, which may each be used
// from another until Finish is called.
//
// Memory goes this way: WriteRun cuts it into windows, which are chunks where
// no page of them is zero, and collects windows into batches; WriteRuns makes a
// batch of what is still to be read (batch.go). Workers read and encode batches,
// write them in order and note them in the index (pipeline.go). The goroutines
// end with Finish or Abort, of which one must be called. The number of batches is
// fixed, so that a Writer's memory is bounded, whatever the size of the process.
type Writer struct {
	sink  Sink
	opts  WriterOptions
	codec chunk.Codec
	pipe  *pipeline
	pages *object
	index *object
	idx   *indexWriter

	cur  *batch    // collects small pieces; nil where there is none
	next page.Addr // the lowest address that the next run may have

	mu      sync.Mutex
	objects map[string]*object // under mu
	done    bool               // Finish or Abort has been called
}

// maxWorkers bounds the goroutines that encode unless asked otherwise: each
// takes about a MiB.
const maxWorkers = 32

var (
	errWriterDone = errors.New("image writer used after its end")
	errOrder      = errors.New("memory not in ascending order")
	errUnaligned  = errors.New("not whole pages")
	errTooMuch    = errors.New("more than fits into a batch")
)

// ErrTooMany is wrapped by the error of Finish for an image of more objects than a manifest has room for,
// which nobody would open: some 7,000.
var ErrTooMany = errors.New("too many files for one image")

// NewWriter starts an image in sink. An error of chunk's Spec is ErrCodec.
func NewWriter(sink Sink, opts WriterOptions) (*Writer, error) {
	if opts.ChunkSize == 0 {
		opts.ChunkSize = chunk.DefaultSize
	}
	if !chunk.ValidSize(opts.ChunkSize) {
		return nil, fmt.Errorf("chunk size %d: not a power of two from %d to %d", opts.ChunkSize, chunk.MinSize, chunk.MaxSize)
	}
	if err := opts.Spec.Check(); err != nil {
		return nil, err
	}
	if opts.Workers <= 0 {
		opts.Workers = min(runtime.GOMAXPROCS(0), maxWorkers)
	}
	w := &Writer{sink: sink, opts: opts, codec: opts.Spec.Codec, objects: make(map[string]*object)}
	var err error
	if w.pages, err = w.create(PagesObject(w.codec), nil); err != nil {
		return nil, err
	}
	if w.index, err = w.create(IndexObject, sha256.New()); err != nil {
		return nil, errors.Join(err, w.pages.Close())
	}
	w.idx = newIndexWriter(w.index, opts.ChunkSize)
	w.pipe = newPipeline(w)
	return w, nil
}

// Workers is how many goroutines encode at a time.
func (w *Writer) Workers() int { return w.opts.Workers }

// An object is one that is being written.
type object struct {
	name   string
	w      io.WriteCloser
	hash   hash.Hash // nil where the object is not hashed as a whole
	size   int64
	closed bool
}

// create makes an object in the sink and lists it for the manifest.
func (w *Writer) create(name string, h hash.Hash) (*object, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.objects[name] != nil || checkObjectName(name) != nil {
		return nil, fmt.Errorf("write image: object %q exists or cannot", name)
	}
	f, err := w.sink.Create(name)
	if err != nil {
		return nil, fmt.Errorf("write image: %w", err)
	}
	o := &object{name: name, w: f, hash: h}
	w.objects[name] = o
	return o, nil
}

// Write appends to the object.
func (o *object) Write(p []byte) (int, error) {
	n, err := o.w.Write(p)
	if o.hash != nil {
		o.hash.Write(p[:n])
	}
	o.size += int64(n)
	if err != nil {
		err = fmt.Errorf("write %s at offset %d: %w", o.name, o.size, err)
	}
	return n, err
}

// Close ends the object; a second call does nothing.
func (o *object) Close() error {
	if o.closed {
		return nil
	}
	o.closed = true
	if err := o.w.Close(); err != nil {
		return fmt.Errorf("close %s: %w", o.name, err)
	}
	return nil
}

// Object makes an object beside the pages: ProcessObject, EagerObject. It is
// hashed while it is written, and closed by Finish if not before.
func (w *Writer) Object(name string) (io.WriteCloser, error) {
	o, err := w.create(name, sha256.New())
	if err != nil {
		return nil, err
	}
	return o, nil
}

// Stats is what has been written so far; it may be called from any goroutine.
func (w *Writer) Stats() Stats { return w.pipe.stats() }

// Finish writes what is left, the index, and last the manifest: m with the
// fields about the format, the objects and the stored bytes filled in. The
// sink then holds a whole image, but has not been committed. On an error the
// Writer has ended and what the sink holds is of no use.
func (w *Writer) Finish(ctx context.Context, m Manifest) (Result, error) {
	if w.done {
		return Result{}, errWriterDone
	}
	err := w.submitCur(ctx)
	w.done = true
	if err != nil {
		w.pipe.fail(err)
	}
	if err := w.pipe.close(); err != nil {
		return Result{}, errors.Join(err, w.closeObjects())
	}
	res, err := w.finish(m)
	return res, errors.Join(err, w.closeObjects())
}

// finish is Finish once all frames are written.
func (w *Writer) finish(m Manifest) (Result, error) {
	if w.codec == chunk.Zstd {
		if _, err := w.pages.Write(w.pipe.seek.Append(nil)); err != nil {
			return Result{}, err
		}
	}
	root, err := w.idx.finish()
	if err != nil {
		return Result{}, err
	}
	if err := w.closeObjects(); err != nil {
		return Result{}, err
	}
	stats := w.pipe.stats()
	w.describe(&m, stats)
	m.IndexRoot = hex.EncodeToString(root[:])
	b, err := AppendManifest(nil, &m)
	if err != nil {
		return Result{}, err
	}
	if len(b) > MaxManifest {
		return Result{}, fmt.Errorf("write image: %w: %d of them, and a %s of %d bytes, of which %d are read",
			ErrTooMany, len(w.objects), ManifestObject, len(b), MaxManifest)
	}
	f, err := w.sink.Create(ManifestObject)
	if err != nil {
		return Result{}, fmt.Errorf("write image: %w", err)
	}
	o := &object{name: ManifestObject, w: f}
	if _, err := o.Write(b); err != nil {
		return Result{}, errors.Join(err, o.Close())
	}
	if err := o.Close(); err != nil {
		return Result{}, err
	}
	return Result{Digest: digestOf(b), Manifest: &m, Stats: stats}, nil
}

// describe fills in what a manifest says about the format and the objects.
func (w *Writer) describe(m *Manifest, stats Stats) {
	m.Format, m.Version = formatName, FormatVersion
	m.Codec, m.ChunkSize = w.codec.String(), w.opts.ChunkSize
	m.Machine.PageSize = page.Size
	m.Layers = []Layer{}
	if m.Created.IsZero() {
		m.Created = time.Now().UTC().Truncate(time.Second)
	}
	m.Objects = make(map[string]Object, len(w.objects))
	for name, o := range w.objects {
		e := Object{Size: o.size}
		if o.hash != nil {
			e.SHA256 = hex.EncodeToString(o.hash.Sum(nil))
		}
		m.Objects[name] = e
	}
	p := &m.Process
	p.MemoryBytes, p.ZeroBytes = stats.MemoryBytes, stats.ZeroBytes
	p.StoredBytes, p.LazyBytes = stats.StoredBytes, stats.LazyBytes
	if o := w.objects[EagerObject]; o != nil {
		p.EagerBytes = uint64(o.size)
		p.MemoryBytes += uint64(o.size)
	}
}

// Abort stops the Writer; what it was given is released, what the sink holds
// is of no use. After Finish it does nothing.
func (w *Writer) Abort() {
	if w.done {
		return
	}
	w.done = true
	w.pipe.fail(context.Canceled)
	_ = w.pipe.close()   // the error is the one it was just given
	_ = w.closeObjects() // nobody wants what they hold
}

func (w *Writer) closeObjects() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var errs []error
	for _, o := range w.objects {
		errs = append(errs, o.Close())
	}
	return errors.Join(errs...)
}
