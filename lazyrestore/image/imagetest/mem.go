// Package imagetest keeps images in memory, for tests of what reads them.
package imagetest

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// A Mem is an image in memory: a Sink to write it to and a Source to read it
// from. Its methods may be called concurrently. The zero value is empty.
type Mem struct {
	mu       sync.Mutex
	objects  map[string][]byte // under mu; a slice is never changed, only replaced
	rejected []string          // under mu
}

// Create makes an object, which is there once it is closed.
func (m *Mem) Create(object string) (io.WriteCloser, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.objects[object]; ok {
		return nil, fmt.Errorf("create %s: %w", object, fs.ErrExist)
	}
	m.set(object, []byte{})
	return &memObject{m: m, name: object}, nil
}

type memObject struct {
	m    *Mem
	name string
	b    []byte
}

func (o *memObject) Write(p []byte) (int, error) {
	if len(p) > cap(o.b)-len(o.b) {
		o.b = slices.Grow(o.b, max(len(p), 2*len(o.b))) // append grows large slices by less
	}
	o.b = append(o.b, p...)
	return len(p), nil
}

func (o *memObject) Close() error {
	if o.b == nil {
		o.b = []byte{}
	}
	o.m.Set(o.name, o.b)
	return nil
}

func (m *Mem) set(object string, b []byte) {
	if m.objects == nil {
		m.objects = make(map[string][]byte)
	}
	m.objects[object] = b
}

// Set replaces an object; nil removes it. The Mem keeps b.
func (m *Mem) Set(object string, b []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b == nil {
		delete(m.objects, object)
		return
	}
	m.set(object, b)
}

// Get is an object's content, not to be changed; nil where there is none.
func (m *Mem) Get(object string) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.objects[object]
}

// Names is the names of all objects, sorted.
func (m *Mem) Names() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.objects))
}

// Clone is an independent copy.
func (m *Mem) Clone() *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &Mem{objects: maps.Clone(m.objects)}
}

// ReadRange is image.Source's.
func (m *Mem) ReadRange(ctx context.Context, object string, p []byte, off int64, _ image.Lane) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	_, err := m.ReadNow(object, p, off)
	return err
}

// ReadNow is image.Immediate's: everything is in memory.
func (m *Mem) ReadNow(object string, p []byte, off int64) (bool, error) {
	b := m.Get(object)
	switch {
	case b == nil:
		return false, fmt.Errorf("read %s: %w", object, fs.ErrNotExist)
	case off < 0 || off > int64(len(b)) || int64(len(p)) > int64(len(b))-off:
		return false, fmt.Errorf("read %d bytes of %s at %d: %w", len(p), object, off, io.ErrUnexpectedEOF)
	}
	copy(p, b[off:])
	return true, nil
}

// Size is image.Source's.
func (m *Mem) Size(ctx context.Context, object string) (int64, error) {
	if err := context.Cause(ctx); err != nil {
		return 0, err
	}
	b := m.Get(object)
	if b == nil {
		return 0, fmt.Errorf("size of %s: %w", object, fs.ErrNotExist)
	}
	return int64(len(b)), nil
}

// Reject is image.Rejecter's: it is only noted, for there are no other bytes.
func (m *Mem) Reject(object string, off, n int64, err error) (again bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rejected = append(m.rejected, fmt.Sprintf("%s %d+%d: %v", object, off, n, err))
	return false
}

// Rejected is what Reject was told so far.
func (m *Mem) Rejected() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.rejected)
}

// Close is image.Source's; it does nothing.
func (m *Mem) Close() error { return nil }

// A Run is memory for Write.
type Run struct {
	At page.Addr
	P  []byte
}

// Write is an image of runs in memory, with an empty process.bin.
func Write(t testing.TB, opts image.WriterOptions, runs ...Run) (*Mem, image.Result) {
	t.Helper()
	return WriteProcess(t, nil, opts, runs...)
}

// WriteProcess is Write with this process.bin.
func WriteProcess(t testing.TB, process []byte, opts image.WriterOptions, runs ...Run) (*Mem, image.Result) {
	t.Helper()
	m := new(Mem)
	w, err := image.NewWriter(m, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for _, r := range runs {
		if err := w.WriteRun(t.Context(), r.At, r.P, nil); err != nil {
			t.Fatal(err)
		}
	}
	o, err := w.Object(image.ProcessObject)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.Write(process); err != nil {
		t.Fatal(err)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	res, err := w.Finish(t.Context(), image.Manifest{Writer: "imagetest"})
	if err != nil {
		t.Fatal(err)
	}
	return m, res
}
