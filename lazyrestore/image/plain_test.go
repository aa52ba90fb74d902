package image_test

import (
	"bytes"
	"context"
	"testing"

	"pgregory.net/rapid"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// Every page of a plain image is where its parts say, in one frame, and no
// other page is there.
func TestPlainImage(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		chunkSize := page.Size * rapid.IntRange(1, 20).Draw(t, "chunk")
		var parts []page.Range
		var object []byte
		at := page.Addr(0)
		where := map[page.Addr]byte{}
		for range rapid.IntRange(0, 40).Draw(t, "parts") {
			at += page.Addr(rapid.IntRange(0, 3).Draw(t, "gap")) << page.Shift
			r := page.RangeOf(at, uint64(rapid.IntRange(1, 50).Draw(t, "pages"))<<page.Shift)
			parts = append(parts, r)
			for ; at < r.End; at += page.Size {
				where[at] = byte(len(where) + 1)
				object = append(object, bytes.Repeat([]byte{where[at]}, page.Size)...)
			}
		}
		mem := new(imagetest.Mem)
		mem.Set("some.img", object)
		im, err := image.NewPlain(mem, "some.img", parts, chunkSize)
		if err != nil {
			t.Fatal(err)
		}
		ix, err := im.LoadIndex(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if want := (len(object) + chunkSize - 1) / chunkSize; ix.Frames() != want {
			t.Errorf("%d frames, want %d", ix.Frames(), want)
		}
		r := im.NewFrameReader(ix)
		defer r.Close()
		for a := page.Addr(0); a <= at; a += page.Size {
			run, ok := ix.Lookup(a)
			want, there := where[a]
			if ok != there {
				t.Fatalf("page %v is there: %v, want %v", a, ok, there)
			}
			if !ok {
				continue
			}
			plain, err := r.Read(context.Background(), int(run.Frame), image.Demand)
			if err != nil {
				t.Fatal(err)
			}
			off := int(run.Offset)<<page.Shift + int(a-run.Page)
			if plain[off] != want || plain[off+page.Size-1] != want {
				t.Fatalf("page %v is %d, want %d", a, plain[off], want)
			}
			one, ok, err := r.ReadPartNow(int(run.Frame), off&^(page.Size-1), page.Size)
			if err != nil || !ok || len(one) != page.Size || one[off%page.Size] != want {
				t.Fatalf("page %v alone: %d bytes, %v, %v", a, len(one), ok, err)
			}
			for _, fr := range ix.FrameRuns(int(run.Frame)) {
				if fr.Frame != run.Frame {
					t.Fatalf("run %+v is listed in frame %d", fr, run.Frame)
				}
			}
		}
	})
}

// A part that is not there is an error, a frame that is checked as a whole is
// not taken apart.
func TestReadPartNow(t *testing.T) {
	run := imagetest.Run{At: 0x10000, P: bytes.Repeat([]byte{1}, 2*page.Size)}
	mem, _ := imagetest.Write(t, image.WriterOptions{}, run)
	whole, err := image.Open(t.Context(), mem, image.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	mem.Set("plain", run.P)
	plain, err := image.NewPlain(mem, "plain", []page.Range{page.RangeOf(run.At, uint64(len(run.P)))}, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		img    *image.Image
		off, n int
		ok     bool
		fails  bool
	}{
		{whole, 0, page.Size, false, false},
		{plain, page.Size, page.Size, true, false},
		{plain, page.Size, 2 * page.Size, false, true},
		{plain, -page.Size, page.Size, false, true},
	} {
		ix, err := tt.img.LoadIndex(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r := tt.img.NewFrameReader(ix)
		if _, ok, err := r.ReadPartNow(0, tt.off, tt.n); ok != tt.ok || (err != nil) != tt.fails {
			t.Errorf("%d bytes at %d: %v, %v", tt.n, tt.off, ok, err)
		}
		r.Close()
	}
}

func TestPlainImageRefuses(t *testing.T) {
	r := page.RangeOf(0x10000, page.Size)
	for _, tt := range []struct {
		name  string
		parts []page.Range
		chunk int
	}{
		{"no chunk", []page.Range{r}, 0},
		{"odd chunk", []page.Range{r}, 5000},
		{"empty part", []page.Range{{Start: 0x1000, End: 0x1000}}, page.Size},
		{"overlap", []page.Range{r, r}, page.Size},
		{"unaligned", []page.Range{{Start: 1, End: 0x1000}}, page.Size},
	} {
		if _, err := image.NewPlain(new(imagetest.Mem), "x", tt.parts, tt.chunk); err == nil {
			t.Errorf("%s: no error", tt.name)
		}
	}
}
