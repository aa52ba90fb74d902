package image_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

var allSpecs = []chunk.Spec{{Codec: chunk.None}, {Codec: chunk.Zstd}, {Codec: chunk.S2}, {Codec: chunk.LZ4}}

// fill makes n pages: of each kind in kinds in turn, zero, text or noise.
func fill(seed uint64, kinds []byte) []byte {
	b := make([]byte, len(kinds)*page.Size)
	r := rand.New(rand.NewPCG(seed, 1))
	for i, k := range kinds {
		p := b[i*page.Size : (i+1)*page.Size]
		switch k {
		case 1:
			for j := 0; j < len(p); j += 8 {
				binary.LittleEndian.PutUint64(p[j:], seed+uint64(j/128))
			}
			p[0] = 1
		case 2:
			for j := 0; j < len(p); j += 8 {
				binary.LittleEndian.PutUint64(p[j:], r.Uint64())
			}
		}
	}
	return b
}

// A fataler is a test, or one run of a property.
type fataler interface {
	Helper()
	Context() context.Context
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// readAll puts an image's pages together from its frames; it fails t where
// the index is not what Lookup and FrameRuns say it is.
func readAll(t fataler, src image.Source, opts image.OpenOptions) map[page.Addr][]byte {
	t.Helper()
	ctx := t.Context()
	im, err := image.Open(ctx, src, opts)
	if err != nil {
		t.Fatal(err)
	}
	ix, err := im.LoadIndex(ctx)
	if err != nil {
		t.Fatal(err)
	}
	r := im.NewFrameReader(ix)
	defer r.Close()
	pages := make(map[page.Addr][]byte)
	for i := range ix.Frames() {
		plain, err := r.Read(ctx, i, image.Demand)
		if err != nil {
			t.Fatal(err)
		}
		runs := ix.FrameRuns(i)
		window := ^page.Addr(ix.ChunkSize() - 1)
		if last := runs[len(runs)-1].Range().End - 1; runs[0].Page&window != last&window {
			t.Fatalf("frame %d is not in one window: %v", i, runs)
		}
		for _, run := range runs {
			for n := range int(run.Pages) {
				a := run.Page + page.Addr(n)<<page.Shift
				if got, ok := ix.Lookup(a + 17); !ok || got != run {
					t.Fatalf("Lookup(%v) = %v, %v, want %v", a, got, ok, run)
				}
				off := (int(run.Offset) + n) << page.Shift
				pages[a] = bytes.Clone(plain[off : off+page.Size])
			}
		}
	}
	return pages
}

// What goes in comes out, whatever the codec, the chunk size, the runs and the
// zero pages in them; and zero pages are not stored.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		spec := rapid.SampledFrom(allSpecs).Draw(t, "codec")
		opts := image.WriterOptions{
			Spec:      spec,
			ChunkSize: page.Size << rapid.IntRange(0, 5).Draw(t, "chunk shift"),
			Workers:   rapid.IntRange(1, 3).Draw(t, "workers"),
		}
		mem := new(imagetest.Mem)
		w, err := image.NewWriter(mem, opts)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Abort()
		want := make(map[page.Addr][]byte)
		at := page.Addr(rapid.IntRange(0, 40).Draw(t, "first page")) << page.Shift
		var zero, total uint64
		released := make(chan struct{}, 100)
		runs := rapid.IntRange(0, 12).Draw(t, "runs")
		for i := range runs {
			kinds := rapid.SliceOfN(rapid.ByteRange(0, 2), 0, 400).Draw(t, "pages")
			p := fill(uint64(i), kinds)
			total += uint64(len(p))
			for j, k := range kinds {
				if k == 0 {
					zero += page.Size
					continue
				}
				want[at+page.Addr(j)<<page.Shift] = bytes.Clone(p[j*page.Size : (j+1)*page.Size])
			}
			err := w.WriteRun(t.Context(), at, p, func() {
				for j := range p {
					p[j] = 0xEE // it is ours again
				}
				released <- struct{}{}
			})
			if err != nil {
				t.Fatal(err)
			}
			if rapid.Bool().Draw(t, "wait") {
				<-released
				runs--
			}
			at += page.Addr(len(p)) + page.Addr(rapid.IntRange(0, 40).Draw(t, "gap"))<<page.Shift
		}
		res, err := w.Finish(t.Context(), image.Manifest{})
		if err != nil {
			t.Fatal(err)
		}
		for range runs {
			<-released
		}
		if res.MemoryBytes != total || res.ZeroBytes != zero || res.LazyBytes != total-zero {
			t.Fatalf("stats %+v, want %d bytes, %d of them zero", res.Stats, total, zero)
		}
		digest := ""
		if rapid.Bool().Draw(t, "pinned") {
			digest = res.Digest
		}
		got := readAll(t, mem, image.OpenOptions{Digest: digest})
		if len(got) != len(want) {
			t.Fatalf("%d pages, want %d", len(got), len(want))
		}
		for a, p := range want {
			if !bytes.Equal(got[a], p) {
				t.Fatalf("page %v differs", a)
			}
		}
		rep, err := image.Verify(t.Context(), mem, image.VerifyOptions{})
		if err != nil || !rep.OK() {
			t.Fatalf("verify: %v, %v", rep.Problems, err)
		}
	})
}
