package pager

import (
	"context"
	"fmt"
	"sort"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// A table numbers the stored pages of an image, in the order of their
// addresses, which is also that of their places in the frames: page k of frame
// f is number base[f]+k. A range of image addresses is thus a range of
// numbers, and a bit for each page is all the book-keeping a space needs.
type table struct {
	*image.Index
	base []uint32 // number of each frame's first page, and the number of all
	mem  arena    // that the index and base lie in
}

// loadTable loads the index of img. free gives its memory back.
func loadTable(ctx context.Context, img *image.Image) (*table, error) {
	var mem arena
	ix, err := img.LoadIndexInto(ctx, mem.alloc)
	if err != nil {
		mem.free()
		return nil, err
	}
	base := mem.alloc(4 * (ix.Frames() + 1))
	if base == nil {
		mem.free()
		return nil, fmt.Errorf("there is no memory for a table of %d frames", ix.Frames())
	}
	t := newTable(ix, words32(base))
	t.mem = mem
	return t, nil
}

// free gives the memory of the table back. Nobody uses the table after it.
func (t *table) free() { t.mem.free() }

// newTable is a table of ix, with base in memory that holds zeros.
func newTable(ix *image.Index, base []uint32) *table {
	t := &table{Index: ix, base: base}
	for i := range ix.Frames() {
		t.base[i+1] = t.base[i] + uint32(ix.Frame(i).Plain>>page.Shift)
	}
	return t
}

// pages is the number of stored pages.
func (t *table) pages() int { return int(t.base[len(t.base)-1]) }

// number is that of the page of r that holds a.
func (t *table) number(r image.Run, a page.Addr) int {
	return int(t.base[r.Frame]) + int(r.Offset) + int((a-r.Page)>>page.Shift)
}

// rank is the number of stored pages below the image address a.
func (t *table) rank(a page.Addr) int {
	for r := range t.RunsFrom(a) {
		if r.Kind == image.Stored {
			return t.number(r, max(a, r.Page))
		}
	}
	return t.pages()
}

// numbers is the range of numbers of the stored pages in r.
func (t *table) numbers(r page.Range) (from, to int) { return t.rank(r.Start), t.rank(r.End) }

// frameOf is the frame that holds page number n.
func (t *table) frameOf(n int) int {
	return sort.Search(t.Frames(), func(i int) bool { return int(t.base[i+1]) > n })
}

// stored is where the first page at or after a that is stored lies, at most end.
func (t *table) stored(a, end page.Addr) page.Addr {
	for r := range t.RunsFrom(a) {
		if r.Page >= end {
			break
		}
		if r.Kind == image.Stored {
			return max(a, r.Page)
		}
	}
	return end
}

// addresses calls f with the image ranges of the pages numbered from i up to
// j, and the number of the first page of each. runs is memory to work in.
func (t *table) addresses(runs *[]image.Run, i, j int, f func(r page.Range, number int)) {
	for frame := t.frameOf(i); i < j && frame < t.Frames(); frame++ {
		*runs = t.AppendFrameRuns((*runs)[:0], frame)
		for _, r := range *runs {
			first := int(t.base[frame]) + int(r.Offset)
			from, to := max(i, first), min(j, first+int(r.Pages))
			if from < to {
				f(page.RangeOf(r.Page+page.Addr(from-first)<<page.Shift, uint64(to-from)<<page.Shift), from)
			}
		}
		i = max(i, int(t.base[frame+1]))
	}
}
