package image_test

import (
	"bytes"
	"errors"
	"io"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// Runs that are read when their turn comes are what comes out, beside runs that
// were given; each is read once, and all have been when Settle returns.
func TestRunsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		mem := new(imagetest.Mem)
		w, err := image.NewWriter(mem, image.WriterOptions{
			Spec:      rapid.SampledFrom(allSpecs).Draw(t, "codec"),
			ChunkSize: page.Size << rapid.IntRange(0, 5).Draw(t, "chunk shift"),
			Workers:   rapid.IntRange(1, 3).Draw(t, "workers"),
		})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Abort()
		want := make(map[page.Addr][]byte)
		var reads atomic.Int32
		calls := rapid.IntRange(0, 12).Draw(t, "calls")
		given := 0
		for at, i := page.Addr(0), 0; i < calls; i++ {
			var runs []page.Range
			var all []byte
			for j := range rapid.IntRange(1, 3).Draw(t, "runs") {
				kinds := rapid.SliceOfN(rapid.ByteRange(0, 2), 1, w.BatchSize()/page.Size/3).Draw(t, "pages")
				p := fill(uint64(3*i+j), kinds)
				at += page.Addr(rapid.IntRange(0, 9).Draw(t, "gap")) << page.Shift
				runs, all = append(runs, page.RangeOf(at, uint64(len(p)))), append(all, p...)
				for k := range kinds {
					if kinds[k] != 0 {
						want[at+page.Addr(k)<<page.Shift] = p[k*page.Size : (k+1)*page.Size]
					}
				}
				at += page.Addr(len(p))
			}
			if len(runs) == 1 && rapid.Bool().Draw(t, "given") {
				given++
				err = w.WriteRun(t.Context(), runs[0].Start, all, nil)
			} else {
				err = w.WriteRuns(t.Context(), runs, func(p []byte) error {
					reads.Add(1)
					if copy(p, all) != len(p) || len(p) != len(all) {
						return io.ErrShortBuffer
					}
					return nil
				})
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Settle(t.Context()); err != nil || int(reads.Load()) != calls-given {
			t.Fatalf("%d of %d reads when settled, %v", reads.Load(), calls-given, err)
		}
		if _, err := w.Finish(t.Context(), image.Manifest{}); err != nil {
			t.Fatal(err)
		}
		got := readAll(t, mem, image.OpenOptions{})
		for a, p := range want {
			if !bytes.Equal(got[a], p) {
				t.Fatalf("page %v differs", a)
			}
		}
		if len(got) != len(want) {
			t.Fatalf("%d pages, want %d", len(got), len(want))
		}
	})
}

// A read that fails is the error of Settle and of Finish, and no image comes of
// it; nor of runs that are too many, or out of order.
func TestRunsFail(t *testing.T) {
	errRead := errors.New("cannot be read")
	nothing := func([]byte) error { return nil }
	for _, tt := range []struct {
		name string
		runs []page.Range
		read func([]byte) error
	}{
		{"read", []page.Range{page.RangeOf(base, page.Size)}, func([]byte) error { return errRead }},
		{"too much", []page.Range{page.RangeOf(base, 4<<20)}, nothing},
		{"order", []page.Range{page.RangeOf(base, page.Size), page.RangeOf(base, page.Size)}, nothing},
		{"part of a page", []page.Range{page.RangeOf(base, 100)}, nothing},
	} {
		t.Run(tt.name, func(t *testing.T) {
			mem := new(imagetest.Mem)
			w, err := image.NewWriter(mem, image.WriterOptions{Spec: chunk.Spec{Codec: chunk.LZ4}})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Abort()
			err = w.WriteRuns(t.Context(), tt.runs, tt.read)
			if (err == nil) != (tt.name == "read") {
				t.Errorf("WriteRuns: %v", err)
			}
			if err := w.Settle(t.Context()); err == nil || tt.name == "read" && !errors.Is(err, errRead) {
				t.Errorf("Settle: %v", err)
			}
			if _, err := w.Finish(t.Context(), image.Manifest{}); err == nil {
				t.Error("Finish gives no error")
			}
			if mem.Get(image.ManifestObject) != nil {
				t.Error("there is a manifest")
			}
		})
	}
}

// Batches that others have encoded meanwhile are written by whom they waited for,
// and read is not called of what comes after a failure.
func TestRunsSinkFull(t *testing.T) {
	sink := &limited{object: image.PagesObject(chunk.LZ4), left: 100}
	w, err := image.NewWriter(sink, image.WriterOptions{Spec: chunk.Spec{Codec: chunk.LZ4}, Workers: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	noise := fill(1, bytes.Repeat([]byte{2}, w.BatchSize()/page.Size))
	for i := 0; err == nil && i < 1000; i++ {
		r := page.RangeOf(base+page.Addr(i*len(noise)), uint64(len(noise)))
		err = w.WriteRuns(t.Context(), []page.Range{r}, func(p []byte) error { copy(p, noise); return nil })
	}
	if !errors.Is(err, errFull) {
		t.Errorf("WriteRuns: %v", err)
	}
	if err := w.Settle(t.Context()); !errors.Is(err, errFull) {
		t.Errorf("Settle: %v", err)
	}
}
