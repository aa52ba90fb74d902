package image_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// scattered is an image of some thousand frames with holes, and so of several
// segments, in chunks of two pages.
func scattered(t testing.TB) (*imagetest.Mem, image.Result) {
	t.Helper()
	var runs []imagetest.Run
	at := base
	for i := range 40 {
		kinds := make([]byte, 200+i)
		for k := range kinds {
			kinds[k] = byte(k*k+i) % 4 % 3 // zero now and then
		}
		runs = append(runs, imagetest.Run{At: at, P: fill(uint64(i), kinds)})
		at += page.Addr(len(kinds)+i*i*100) << page.Shift
	}
	return imagetest.Write(t, image.WriterOptions{Spec: chunk.Spec{Codec: chunk.LZ4}, ChunkSize: 2 * page.Size}, runs...)
}

// naive is the runs of an index, read from front to back as FORMAT.md has it.
func naive(b []byte) (runs []image.Run) {
	le := binary.LittleEndian
	foot := b[len(b)-64:]
	directory := b[le.Uint64(foot[44:]) : len(b)-64]
	for ; len(directory) > 0; directory = directory[64:] {
		at := le.Uint64(directory) + 24*uint64(le.Uint32(directory[16:]))
		for i := range uint64(le.Uint32(directory[20:])) {
			e := b[at+16*i:]
			runs = append(runs, image.Run{
				Page: page.Addr(le.Uint64(e)&(1<<52-1)) << page.Shift, Kind: image.Kind(le.Uint64(e) >> 52), Frame: le.Uint32(e[8:]),
				Pages: uint32(le.Uint16(e[12:])), Offset: uint32(le.Uint16(e[14:])),
			})
		}
	}
	return runs
}

// Whatever segments are loaded, and in whatever order, they say what the file
// says.
func TestSegmentsSayWhatTheFileSays(t *testing.T) {
	mem, res := scattered(t)
	want := naive(mem.Get(image.IndexObject))
	end := want[len(want)-1].Range().End + page.Size
	rapid.Check(t, func(rt *rapid.T) {
		digest := rapid.SampledFrom([]string{"", res.Digest}).Draw(rt, "digest")
		im, err := image.Open(context.Background(), mem, image.OpenOptions{Digest: digest})
		if err != nil {
			rt.Fatal(err)
		}
		ix, err := im.OpenIndex(context.Background())
		if err != nil {
			rt.Fatal(err)
		}
		if ix.Segments() < 4 {
			rt.Fatalf("%d segments", ix.Segments())
		}
		order := rapid.Permutation([]int{0, 1, 2, 3}).Draw(rt, "order")
		for _, i := range order[:rapid.IntRange(1, 4).Draw(rt, "how many")] {
			buf := make([]byte, ix.SegmentBytes(i))
			if rapid.Bool().Draw(rt, "now") {
				if ok, err := ix.LoadNow(i, buf); !ok || err != nil {
					rt.Fatalf("LoadNow(%d) = %v, %v", i, ok, err)
				}
			} else if err := ix.Load(context.Background(), i, buf, image.Demand); err != nil {
				rt.Fatal(err)
			}
		}
		for range 100 {
			a := base + page.Addr(rapid.Uint64Range(0, uint64(end-base)>>page.Shift).Draw(rt, "page"))<<page.Shift - page.Size
			if rapid.Bool().Draw(rt, "near") {
				a = want[rapid.IntRange(0, len(want)-1).Draw(rt, "run")].Page - page.Addr(rapid.IntRange(0, 3).Draw(rt, "before"))<<page.Shift
			}
			seg := ix.SegmentAt(a)
			if (seg < 0) != (a < want[0].Page) {
				rt.Fatalf("%v is in segment %d", a, seg)
			}
			if seg < 0 || !ix.Loaded(seg) {
				continue
			}
			k := slices.IndexFunc(want, func(r image.Run) bool { return r.Range().Contains(a) })
			got, ok := ix.Lookup(a)
			if ok != (k >= 0) || ok && got != want[k] {
				rt.Fatalf("Lookup(%v) = %+v, %v", a, got, ok)
			}
			checkAround(rt, ix, want, a, seg)
		}
	})
}

// checkAround looks at what an index says of the loaded segment seg, and of
// the memory from a on in it.
func checkAround(t *rapid.T, ix *image.Index, want []image.Run, a page.Addr, seg int) {
	t.Helper()
	r := page.Range{Start: a, End: min(a+20*page.Size, ix.SegmentRange(seg).End)}
	var list []image.Run
	for _, w := range want {
		if w.Range().Overlaps(r) {
			list = append(list, w)
		}
	}
	if got := slices.Collect(ix.RunsIn(r)); !slices.Equal(got, list) {
		t.Fatalf("RunsIn(%v) = %+v, want %+v", r, got, list)
	}
	first, end := ix.SegmentFrames(seg)
	numbers := make([]uint32, end-first+1)
	ix.FirstPages(seg, numbers)
	for _, run := range list {
		frame := int(run.Frame)
		if frame < first || frame >= end || ix.SegmentOf(frame) != seg {
			t.Fatalf("frame %d is not of segment %d, %d to %d", frame, seg, first, end)
		}
		pages := uint32(0)
		for _, fr := range ix.FrameRuns(frame) {
			pages += fr.Pages
		}
		if n := numbers[frame-first+1] - numbers[frame-first]; n != pages || int(n)<<page.Shift != ix.Frame(frame).Plain {
			t.Fatalf("frame %d has %d pages by FirstPages, %d by its runs", frame, n, pages)
		}
	}
}

// A segment that is damaged is none, the others are whole; the source is told
// of it, and may have it whole the next time.
func TestDamagedSegment(t *testing.T) {
	mem, res := scattered(t)
	good := mem.Get(image.IndexObject)
	for _, digest := range []string{"", res.Digest} {
		m := mem.Clone()
		im, err := image.Open(t.Context(), m, image.OpenOptions{Digest: digest})
		if err != nil {
			t.Fatal(err)
		}
		ix, err := im.OpenIndex(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		bad := bytes.Clone(good)
		bad[16+ix.SegmentBytes(0)+1<<10*16+77] ^= 8 // in the next one, with or without digests
		m.Set(image.IndexObject, bad)
		for i := range ix.Segments() {
			err := ix.Load(t.Context(), i, make([]byte, ix.SegmentBytes(i)), image.Background)
			if (i == 1) != errors.Is(err, image.ErrDamaged) || ix.Loaded(i) == (i == 1) {
				t.Errorf("segment %d: %v", i, err)
			}
		}
		if ok, err := ix.LoadNow(1, make([]byte, ix.SegmentBytes(1))); ok || !errors.Is(err, image.ErrDamaged) {
			t.Errorf("LoadNow = %v, %v", ok, err)
		}
		if n := len(m.Rejected()); n != 2 {
			t.Errorf("the source was told %d times", n)
		}
		if _, err := im.LoadIndex(t.Context()); !errors.Is(err, image.ErrDamaged) {
			t.Errorf("LoadIndex: %v", err)
		}
		m.Set(image.IndexObject, good)
		if err := ix.Load(t.Context(), 1, make([]byte, ix.SegmentBytes(1)), image.Background); err != nil || !ix.Loaded(1) {
			t.Errorf("once it is whole: %v", err)
		}
	}
}

// The source is told of all of the end of an index that was read and is damaged, wherever
// that is: what it keeps by blocks it can then have anew. A version that is too new is
// believed only of an index that is as it was written.
func TestDamagedTail(t *testing.T) {
	mem, _ := scattered(t)
	good := mem.Get(image.IndexObject)
	directory := int(binary.LittleEndian.Uint64(good[len(good)-20:]))
	for _, at := range []int{directory, directory + 100, len(good) - 64, len(good) - 55, len(good) - 10, len(good) - 1} {
		m := mem.Clone()
		bad := bytes.Clone(good)
		bad[at] ^= 1
		m.Set(image.IndexObject, bad)
		im, err := image.Open(t.Context(), m, image.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := im.OpenIndex(t.Context()); !errors.Is(err, image.ErrDamaged) {
			t.Errorf("byte %d: %v", at, err)
		}
		var from, n int
		told := m.Rejected()
		if len(told) != 1 {
			t.Fatalf("byte %d: the source was told %q", at, told)
		}
		if _, err := fmt.Sscanf(told[0], image.IndexObject+" %d+%d:", &from, &n); err != nil || from > directory || from+n != len(good) {
			t.Errorf("byte %d: the source was told %q, want all from %d on", at, told, directory)
		}
	}
}

// A segment that lists nothing is none that a writer makes.
func TestEmptySegment(t *testing.T) {
	mem, _ := small(t, chunk.Spec{Codec: chunk.LZ4})
	b := bytes.Clone(mem.Get(image.IndexObject))
	foot := bytes.Clone(b[len(b)-64:])
	empty := make([]byte, 64)
	binary.LittleEndian.PutUint64(empty, binary.LittleEndian.Uint64(foot[44:])) // at the directory
	binary.LittleEndian.PutUint64(empty[8:], 1<<50)
	foot[20]++
	b = image.SealIndex(slices.Concat(b[:len(b)-64], empty, foot))
	mem.Set(image.IndexObject, b)
	if _, err := image.OpenIndexOf(mem, b, int64(len(mem.Get("pages.lz4")))); !errors.Is(err, image.ErrDamaged) {
		t.Errorf("error %v", err)
	}
}

// Two segments that do not fit each other are not both taken, whichever comes
// first, also where they come at once.
func TestSegmentsThatDoNotFit(t *testing.T) {
	mem, _ := scattered(t)
	b := bytes.Clone(mem.Get(image.IndexObject))
	directory := b[binary.LittleEndian.Uint64(b[len(b)-20:]):]
	second := binary.LittleEndian.Uint64(directory[64:])
	frames := binary.LittleEndian.Uint32(directory[64+16:])
	for i := range uint64(frames) {
		at := b[second+24*i:]
		binary.LittleEndian.PutUint64(at, binary.LittleEndian.Uint64(at)+1) // all of them a byte further on
	}
	b = image.SealIndex(b)
	pages := int64(len(mem.Get("pages.lz4")))
	mem.Set(image.IndexObject, b)
	for _, first := range []int{1, 2} {
		ix, err := image.OpenIndexOf(mem, b, pages)
		if err != nil {
			t.Fatal(err)
		}
		load := func(i int) error {
			return ix.Load(t.Context(), i, make([]byte, ix.SegmentBytes(i)), image.Demand)
		}
		if err := load(first); err != nil {
			t.Errorf("segment %d alone: %v", first, err)
		}
		if err := load(3 - first); !errors.Is(err, image.ErrDamaged) {
			t.Errorf("segment %d after %d: %v", 3-first, first, err)
		}
	}
	for range 100 {
		ix, err := image.OpenIndexOf(mem, b, pages)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		errs := make([]error, 2)
		for k := range errs {
			wg.Go(func() { errs[k] = ix.Load(t.Context(), k+1, make([]byte, ix.SegmentBytes(k+1)), image.Demand) })
		}
		wg.Wait()
		if errs[0] == nil && errs[1] == nil {
			t.Fatal("both were taken")
		}
	}
}
