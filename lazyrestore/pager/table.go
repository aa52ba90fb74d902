package pager

import (
	"context"
	"fmt"
	"sort"
	"sync/atomic"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// A table numbers the stored pages of an image, in the order of their
// addresses, which is also that of their places in the frames: a bit for each
// number is all the book-keeping a space needs.
//
// The index is loaded by segments, and so the numbers are known by segments:
// each has as many as its frames have room for pages. In an opened one they are
// dealt out without gaps, those at its end stand for no page. A range of the
// image addresses of one segment is thus a range of numbers.
type table struct {
	*image.Index
	mem    arena
	each   int                       // pages that a frame has room for
	opened []atomic.Pointer[segment] // of each segment of the index; nil until it is opened
	closed atomic.Int32              // how many are nil
}

// A segment is one of the index that pages are served from.
type segment struct {
	frame  int          // its first
	number int          // of its first page
	base   []uint32     // number of each frame's first page, less that; and of all pages
	within page.Range   // image addresses of which it knows
	ix     *image.Index // it is loaded; nil if it is lost
	cause  error        // why it is lost
	told   atomic.Bool  // it counts among what is lost
}

// mostNumbers bounds what a table numbers, and so a GiB for the bits of a space:
// how many frames there are, a forged image may lie about.
const mostNumbers = 8 << 30

// openTable opens the index of img. free gives its memory back.
func openTable(ctx context.Context, img *image.Image) (*table, error) {
	ix, err := img.OpenIndex(ctx)
	if err != nil {
		return nil, err
	}
	each := ix.ChunkSize() >> page.Shift
	if ix.Frames() > mostNumbers/each {
		return nil, fmt.Errorf("there is no memory for a table of %d frames", ix.Frames())
	}
	t := &table{Index: ix, each: each, opened: make([]atomic.Pointer[segment], ix.Segments())}
	t.closed.Store(int32(ix.Segments()))
	n := 0
	for i := range ix.Segments() {
		if !ix.Loaded(i) {
			n += arenaBytes(ix.SegmentBytes(i))
		}
	}
	t.mem.reserve(n)
	return t, nil
}

// free gives the memory of the table back. Nobody uses the table after it.
func (t *table) free() { t.mem.free() }

// room is how many numbers there are.
func (t *table) room() int { return t.Frames() * t.each }

// segment makes what segment i is once it is opened. It is loaded, or lost, and then
// cause says why.
func (t *table) segment(i int, cause error) *segment {
	first, end := t.SegmentFrames(i)
	sg := &segment{frame: first, number: first * t.each, within: t.SegmentRange(i), cause: cause}
	if cause == nil {
		sg.ix = t.Index
		sg.base = make([]uint32, end-first+1)
		t.FirstPages(i, sg.base)
	}
	return sg
}

// lost reports whether the segment cannot be had, and so none of its pages.
func (sg *segment) lost() bool { return sg.ix == nil }

// end is the number behind the segment's last page.
func (sg *segment) end() int { return sg.number + int(sg.base[len(sg.base)-1]) }

// rank is the number of the segment's first page at or above the image
// address a.
func (sg *segment) rank(a page.Addr) int {
	for r := range sg.ix.RunsIn(page.Range{Start: max(a, sg.within.Start), End: sg.within.End}) {
		if r.Kind == image.Stored {
			return sg.number + int(sg.base[int(r.Frame)-sg.frame]) + int(r.Offset) + int((max(a, r.Page)-r.Page)>>page.Shift)
		}
	}
	return sg.end()
}

// numbers is the range of numbers of the segment's pages in r.
func (sg *segment) numbers(r page.Range) (from, to int) { return sg.rank(r.Start), sg.rank(r.End) }

// segments calls f with each segment that lists some of the image range r.
func (t *table) segments(r page.Range, f func(i int, sg *segment)) {
	for i := max(t.SegmentAt(r.Start), 0); i < len(t.opened) && t.SegmentRange(i).Overlaps(r); i++ {
		f(i, t.opened[i].Load())
	}
}

// frameNumbers is the numbers of frame's pages. Its segment is opened, and not lost.
func (t *table) frameNumbers(frame int) (from, to int) {
	sg := t.opened[t.SegmentOf(frame)].Load()
	k := frame - sg.frame
	return sg.number + int(sg.base[k]), sg.number + int(sg.base[k+1])
}

// from is the number of frame's first page.
func (t *table) from(frame int) int {
	from, _ := t.frameNumbers(frame)
	return from
}

// spanNumbers is the numbers of the pages of n frames from first on, all of one
// segment.
func (t *table) spanNumbers(first, n int) (from, to int) {
	from, _ = t.frameNumbers(first)
	_, to = t.frameNumbers(first + n - 1)
	return from, to
}

// number is that of the page of r that holds a.
func (t *table) number(r image.Run, a page.Addr) int {
	return t.from(int(r.Frame)) + int(r.Offset) + int((a-r.Page)>>page.Shift)
}

// frameOf is the frame that holds page number n, and the number behind its
// last page. In a segment that is not opened each frame may hold all it can.
func (t *table) frameOf(n int) (frame, end int) {
	frame = n / t.each
	sg := t.opened[t.SegmentOf(frame)].Load()
	if sg == nil || sg.lost() {
		return frame, (frame + 1) * t.each
	}
	k := sort.Search(len(sg.base)-2, func(k int) bool { return sg.number+int(sg.base[k+1]) > n })
	return sg.frame + k, sg.number + int(sg.base[k+1])
}

// stored is where the first page at or after a that is stored lies, at most
// end, and at most the end of the segment of a, which is opened.
func (t *table) stored(a, end page.Addr) page.Addr {
	if i := t.SegmentAt(a); i >= 0 {
		end = min(end, t.SegmentRange(i).End)
	} else if t.Segments() > 0 {
		return min(end, t.SegmentRange(0).Start)
	}
	for r := range t.RunsIn(page.Range{Start: a, End: end}) {
		if r.Kind == image.Stored {
			return max(a, r.Page)
		}
	}
	return end
}

// addresses calls f with the image ranges of the pages numbered from i up to
// j, all of one segment, and the number of the first page of each. runs is
// memory to work in.
func (t *table) addresses(runs *[]image.Run, i, j int, f func(r page.Range, number int)) {
	for i < j {
		frame, end := t.frameOf(i)
		*runs = t.AppendFrameRuns((*runs)[:0], frame)
		base := t.from(frame)
		for _, r := range *runs {
			first := base + int(r.Offset)
			from, to := max(i, first), min(j, first+int(r.Pages))
			if from < to {
				f(page.RangeOf(r.Page+page.Addr(from-first)<<page.Shift, uint64(to-from)<<page.Shift), from)
			}
		}
		i = end
	}
}
