package image_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// limited is a sink that fails an object after some bytes.
type limited struct {
	imagetest.Mem
	object string
	left   int
}

var errFull = errors.New("no space left on device")

func (s *limited) Create(name string) (io.WriteCloser, error) {
	w, err := s.Mem.Create(name)
	if name != s.object {
		return w, err
	}
	return &limitedObject{w, s}, err
}

type limitedObject struct {
	io.WriteCloser
	s *limited
}

func (o *limitedObject) Write(p []byte) (int, error) {
	n := min(len(p), o.s.left)
	o.s.left -= n
	if n, err := o.WriteCloser.Write(p[:n]); err != nil {
		return n, err
	}
	if n < len(p) {
		return n, errFull
	}
	return n, nil
}

// A sink that is full, at whatever object and byte, is an error of WriteRun or
// Finish; every run is released exactly once; no goroutine stays.
func TestSinkFull(t *testing.T) {
	memory := fill(1, bytes.Repeat([]byte{2, 1}, 150))
	for _, spec := range allSpecs {
		for _, object := range []string{image.PagesObject(spec.Codec), image.IndexObject, image.ManifestObject} {
			for _, left := range []int{0, 1, 100} {
				sink := &limited{object: object, left: left}
				w, err := image.NewWriter(sink, image.WriterOptions{Spec: spec, ChunkSize: 4 * page.Size})
				if err != nil {
					t.Fatal(err)
				}
				var given, released atomic.Int32
				failed := error(nil)
				for i := range 8 {
					given.Add(1)
					if err := w.WriteRun(t.Context(), base+page.Addr(i)<<24, memory, func() { released.Add(1) }); err != nil {
						failed = err
						break
					}
				}
				if _, err := w.Finish(t.Context(), image.Manifest{}); err == nil {
					t.Errorf("%v, %s full after %d bytes: no error of Finish", spec, object, left)
				} else {
					failed = err
				}
				w.Abort()
				if !errors.Is(failed, errFull) {
					t.Errorf("%v, %s full after %d bytes: %v", spec, object, left, failed)
				}
				if given.Load() != released.Load() {
					t.Errorf("%v, %s: %d runs given, %d released", spec, object, given.Load(), released.Load())
				}
			}
		}
	}
}

// blocked is a sink whose pages object takes nothing until it is opened.
type blocked struct {
	imagetest.Mem
	open chan struct{}
}

func (s *blocked) Create(name string) (io.WriteCloser, error) {
	w, err := s.Mem.Create(name)
	return blockedObject{w, s}, err
}

type blockedObject struct {
	io.WriteCloser
	s *blocked
}

func (o blockedObject) Write(p []byte) (int, error) {
	<-o.s.open
	return o.WriteCloser.Write(p)
}

// A slow sink makes WriteRun wait instead of taking more memory; a cancelled
// context ends the wait, and the image cannot be finished without that run.
func TestBackPressure(t *testing.T) {
	sink := &blocked{open: make(chan struct{})}
	w, err := image.NewWriter(sink, image.WriterOptions{Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	p := make([]byte, 1<<20)
	p[0] = 1
	var released atomic.Int32
	given := int32(0)
	for i := 0; err == nil && i < 1000; i++ {
		given++
		err = w.WriteRun(ctx, base+page.Addr(i*len(p)), p, func() { released.Add(1) })
	}
	if !errors.Is(err, context.DeadlineExceeded) || given > 20 {
		t.Errorf("%d MiB taken, then %v", given, err)
	}
	close(sink.open)
	if _, err := w.Finish(t.Context(), image.Manifest{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Finish without a run: %v", err)
	}
	if released.Load() != given {
		t.Errorf("%d runs given, %d released", given, released.Load())
	}
	if sink.Get(image.ManifestObject) != nil {
		t.Error("there is a manifest")
	}
}

func TestAbortReleases(t *testing.T) {
	w, err := image.NewWriter(new(imagetest.Mem), image.WriterOptions{Spec: chunk.Spec{Codec: chunk.LZ4}})
	if err != nil {
		t.Fatal(err)
	}
	released := make(chan struct{}, 2)
	for i := range 2 {
		if err := w.WriteRun(t.Context(), base+page.Addr(i)<<30, make([]byte, 3<<20+page.Size), func() { released <- struct{}{} }); err != nil {
			t.Fatal(err)
		}
	}
	w.Abort()
	if len(released) != 2 {
		t.Errorf("%d of 2 runs released", len(released))
	}
	w.Abort()
	if err := w.WriteRun(t.Context(), base, nil, nil); err == nil {
		t.Error("WriteRun after Abort gives no error")
	}
	if _, err := w.Finish(t.Context(), image.Manifest{}); err == nil {
		t.Error("Finish after Abort gives no error")
	}
}

func TestBadRuns(t *testing.T) {
	for _, tt := range []struct {
		name string
		at   page.Addr
		n    int
	}{
		{"unaligned", base + 1<<20 + 1, page.Size},
		{"part of a page", base + 1<<20, 100},
		{"before the last one", base - page.Size, page.Size},
		{"overlapping the last one", base + page.Size, page.Size},
		{"past the end of addresses", page.Addr(0).Down() - page.Size, 2 * page.Size},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, err := image.NewWriter(new(imagetest.Mem), image.WriterOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Abort()
			if err := w.WriteRun(t.Context(), base, make([]byte, 2*page.Size), nil); err != nil {
				t.Fatal(err)
			}
			n := 0
			if err := w.WriteRun(t.Context(), tt.at, make([]byte, tt.n), func() { n++ }); err == nil || n != 1 {
				t.Errorf("WriteRun: %v, released %d times", err, n)
			}
		})
	}
	for _, opts := range []image.WriterOptions{{ChunkSize: 1000}, {ChunkSize: 32 << 20}, {Spec: chunk.Spec{Codec: 99}}, {Spec: chunk.Spec{Codec: chunk.LZ4, Level: 7}}} {
		if _, err := image.NewWriter(new(imagetest.Mem), opts); err == nil {
			t.Errorf("%+v is accepted", opts)
		}
	}
}

// An image without any memory is an image.
func TestEmpty(t *testing.T) {
	for _, spec := range allSpecs {
		mem, res := imagetest.Write(t, image.WriterOptions{Spec: spec})
		pages, _, err := contents(t, mem, res.Digest)
		if err != nil || len(pages) != 0 {
			t.Errorf("%v: %d pages, %v", spec, len(pages), err)
		}
		if rep, err := image.Verify(t.Context(), mem, image.VerifyOptions{}); err != nil || !rep.OK() {
			t.Errorf("%v: verify: %v, %v", spec, rep.Problems, err)
		}
	}
}

// Many segments: every page of a sparse image is found in its frame.
func TestManySegments(t *testing.T) {
	const n = 34_000 // one page to a frame: three segments
	opts := image.WriterOptions{ChunkSize: page.Size}
	mem := new(imagetest.Mem)
	w, err := image.NewWriter(mem, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	p := make([]byte, n*page.Size)
	for i := range n {
		p[i*page.Size], p[i*page.Size+1], p[i*page.Size+2] = byte(i), byte(i>>8), 1
	}
	for i := 0; i < n; i += 1000 {
		if err := w.WriteRun(t.Context(), base+page.Addr(i)*3<<page.Shift, p[i*page.Size:(i+1000)*page.Size], nil); err != nil {
			t.Fatal(err)
		}
	}
	res, err := w.Finish(t.Context(), image.Manifest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, digest := range []string{"", res.Digest} {
		im, err := image.Open(t.Context(), mem, image.OpenOptions{Digest: digest})
		if err != nil {
			t.Fatal(err)
		}
		ix, err := im.LoadIndex(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if ix.Frames() != n || ix.NumRuns() != n || len(ix.Runs()) != n {
			t.Fatal(ix)
		}
		r := im.NewFrameReader(ix)
		for i := 0; i < n; i += 97 {
			a := base + page.Addr(i/1000*3000+i%1000)<<page.Shift
			run, ok := ix.Lookup(a)
			if !ok || int(run.Frame) != i {
				t.Fatalf("Lookup(%v) = %+v, %v, want frame %d", a, run, ok, i)
			}
			if rs := ix.FrameRuns(i); len(rs) != 1 || rs[0] != run {
				t.Fatalf("FrameRuns(%d) = %+v, want %+v", i, rs, run)
			}
			span := min(5, n-i)
			got, err := r.ReadSpan(t.Context(), i, span, image.Background)
			if err != nil || !bytes.Equal(got, p[i*page.Size:(i+span)*page.Size]) {
				t.Fatalf("frames %d to %d: %v, or other bytes", i, i+span, err)
			}
		}
		for r := range ix.RunsIn(page.RangeOf(base+2500<<page.Shift, 1<<30)) {
			if r.Page != base+3000<<page.Shift {
				t.Errorf("RunsIn starts with %+v", r)
			}
			break
		}
	}
}

// An image of more objects than a manifest has room for is an error of Finish: nobody would open it.
func TestManyObjects(t *testing.T) {
	for objects, ok := range map[int]bool{7000: true, 8000: false} {
		sink := new(imagetest.Mem)
		w, err := image.NewWriter(sink, image.WriterOptions{Workers: 1})
		if err != nil {
			t.Fatal(err)
		}
		for i := range objects {
			if _, err := w.Object(fmt.Sprintf("pagemap-%d.img", 1000000+i)); err != nil {
				t.Fatal(err)
			}
		}
		_, err = w.Finish(t.Context(), image.Manifest{})
		if (err == nil) != ok || err != nil && !errors.Is(err, image.ErrTooMany) {
			t.Errorf("%d objects: Finish gives %v", objects, err)
		}
		if err == nil {
			_, err = image.Open(t.Context(), sink, image.OpenOptions{})
		}
		if (err == nil) != ok {
			t.Errorf("%d objects: %v", objects, err)
		}
	}
}
