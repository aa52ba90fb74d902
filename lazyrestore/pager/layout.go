package pager

import (
	"cmp"
	"fmt"
	"slices"
	"sort"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// A layout says which parts of one address space an image still fills. It is
// the mappings as the engine made them, less what the process has since
// unmapped or thrown away, moved to where the process has moved it. An address
// in no mapping of the layout holds zeros if it is missing.
//
// The same mappings are kept twice, by process address and by image address,
// so that both a fault and a decoded frame find theirs in O(log n). It is
// pure data: callers serialise.
type layout struct {
	byProc  []page.Mapping // sorted by Start, no two overlap
	byImage []page.Mapping // sorted by Image, then Start; only shared memory overlaps
	// longest is no less than the length of any mapping from page.ImageShared
	// on, where shared memory is: how far before an image address a mapping that
	// covers it can begin.
	longest uint64
	shared  bool // there is shared memory among it, or was
	apart   bool // shared memory that has a place may be shown elsewhere when a mapping grows
}

// newLayout checks maps and makes a layout of them. Private memory must not
// hold one image address twice, since a page of it is installed once.
func newLayout(maps []page.Mapping) (layout, error) {
	l := layout{byProc: slices.Clone(maps)}
	for _, m := range maps {
		if err := checkMapping(m); err != nil {
			return layout{}, err
		}
		if m.Image >= page.ImageShared {
			l.longest = max(l.longest, m.Len())
		}
		l.shared = l.shared || m.Shared
	}
	slices.SortFunc(l.byProc, func(a, b page.Mapping) int { return cmp.Compare(a.Start, b.Start) })
	l.byImage = slices.Clone(l.byProc)
	slices.SortFunc(l.byImage, compareImage)
	for i := range l.byProc[:max(len(l.byProc), 1)-1] {
		if a, b := l.byProc[i], l.byProc[i+1]; a.End > b.Start {
			return layout{}, fmt.Errorf("mappings %v and %v overlap", a.Range, b.Range)
		}
		if a, b := l.byImage[i], l.byImage[i+1]; !b.Shared && a.ImageRange().End > b.Image {
			return layout{}, fmt.Errorf("private mappings %v and %v hold the same image addresses", a.Range, b.Range)
		} else {
			l.apart = l.apart || b.Shared && a.Object == b.Object && a.Start-a.Image != b.Start-b.Image
		}
	}
	return l, nil
}

func checkMapping(m page.Mapping) error {
	size := page.Addr(m.PageSize)
	switch {
	case m.Empty():
		return fmt.Errorf("mapping %v is empty", m.Range)
	case m.PageSize < page.Size || m.PageSize&(m.PageSize-1) != 0:
		return fmt.Errorf("mapping %v: page size %d", m.Range, m.PageSize)
	case m.Start%size != 0 || m.End%size != 0 || m.Image%size != 0:
		return fmt.Errorf("mapping %v of image address %v: not aligned to its page size %d", m.Range, m.Image, m.PageSize)
	case m.ImageRange().Empty():
		return fmt.Errorf("mapping %v: image address %v is too high", m.Range, m.Image)
	case m.Shared && m.Image < page.ImageShared:
		return fmt.Errorf("mapping %v of image address %v: shared memory lies above %v", m.Range, m.Image, page.ImageShared)
	case !m.Object.Empty() && !m.Object.Covers(m.ImageRange()):
		return fmt.Errorf("mapping %v of image address %v: its object is %v", m.Range, m.Image, m.Object.Range)
	}
	return nil
}

func compareImage(a, b page.Mapping) int {
	return cmp.Or(cmp.Compare(a.Image, b.Image), cmp.Compare(a.Start, b.Start))
}

// search is the index of the first mapping that ends after a.
func (l *layout) search(a page.Addr) int {
	return sort.Search(len(l.byProc), func(i int) bool { return l.byProc[i].End > a })
}

// find is the mapping that holds the process address a.
func (l *layout) find(a page.Addr) (page.Mapping, bool) {
	i := l.search(a)
	if i == len(l.byProc) || l.byProc[i].Start > a {
		return page.Mapping{}, false
	}
	return l.byProc[i], true
}

// fills reports whether the image fills some of r.
func (l *layout) fills(r page.Range) bool {
	i := l.search(r.Start)
	return i < len(l.byProc) && l.byProc[i].Start < r.End
}

// gap is the part of r around a, an address in no mapping, that no mapping
// touches.
func (l *layout) gap(a page.Addr, r page.Range) page.Range {
	i := l.search(a)
	if i < len(l.byProc) {
		r.End = min(r.End, l.byProc[i].Start)
	}
	if i > 0 {
		r.Start = max(r.Start, l.byProc[i-1].End)
	}
	return r
}

// places calls f with each mapping, cut to what lies in the image range r.
func (l *layout) places(r page.Range, f func(page.Mapping)) {
	// Private mappings do not overlap, so at most one begins before r.
	from := sort.Search(len(l.byImage), func(i int) bool { return l.byImage[i].Image >= r.Start })
	if r.Start < page.ImageShared {
		from = max(from-1, 0)
	} else {
		for from > 0 && uint64(r.Start-l.byImage[from-1].Image) < l.longest {
			from--
		}
	}
	for _, m := range l.byImage[from:] {
		if m.Image >= r.End {
			break
		}
		if c := cutImage(m, r); !c.Empty() {
			f(c)
		}
	}
}

// ofObject is the part of the image range r that m may have grown by.
func ofObject(m page.Mapping, r page.Range) page.Range {
	if m.Object.Empty() {
		return r
	}
	return r.Intersect(m.Object.Range)
}

// cutImage is the part of m whose image addresses lie in r.
func cutImage(m page.Mapping, r page.Range) page.Mapping {
	in := m.ImageRange().Intersect(r)
	if in.Empty() {
		return page.Mapping{}
	}
	m.Range = page.RangeOf(m.Start+(in.Start-m.Image), in.Len())
	m.Image = in.Start
	return m
}

// cutProc is the part of m whose process addresses lie in r.
func cutProc(m page.Mapping, r page.Range) page.Mapping {
	in := m.Range.Intersect(r)
	if in.Empty() {
		return page.Mapping{}
	}
	m.Image, m.Range = m.ImageAddr(in.Start), in
	return m
}

// cut takes the process range r out of the layout and returns the mappings
// that were there, in order of their addresses.
func (l *layout) cut(r page.Range) []page.Mapping {
	i := l.search(r.Start)
	j := i
	var gone, keep []page.Mapping
	for ; j < len(l.byProc) && l.byProc[j].Start < r.End; j++ {
		m := l.byProc[j]
		l.dropImage(m)
		gone = append(gone, cutProc(m, r))
		for _, rest := range [2]page.Range{{Start: m.Start, End: r.Start}, {Start: r.End, End: m.End}} {
			if part := cutProc(m, rest); !part.Empty() {
				keep = append(keep, part)
			}
		}
	}
	if i == j {
		return nil
	}
	l.byProc = slices.Replace(l.byProc, i, j, keep...)
	for _, m := range keep {
		l.addImage(m)
	}
	return gone
}

// insert puts m, which must overlap no mapping, into the layout.
func (l *layout) insert(m page.Mapping) {
	i := sort.Search(len(l.byProc), func(i int) bool { return l.byProc[i].Start > m.Start })
	l.byProc = slices.Insert(l.byProc, i, m)
	l.addImage(m)
}

// join is insert, but where m goes on from the mapping below the two become one.
func (l *layout) join(m page.Mapping) {
	if i := l.search(m.Start); i > 0 {
		below := l.byProc[i-1]
		if below.End == m.Start && below.ImageRange().End == m.Image && below.PageSize == m.PageSize && below.Shared == m.Shared {
			l.cut(below.Range)
			m.Start, m.Image = below.Start, below.Image
		}
	}
	l.insert(m)
}

func (l *layout) addImage(m page.Mapping) {
	i, _ := slices.BinarySearchFunc(l.byImage, m, compareImage)
	l.byImage = slices.Insert(l.byImage, i, m)
	if m.Image >= page.ImageShared {
		l.longest = max(l.longest, m.Len())
	}
}

func (l *layout) dropImage(m page.Mapping) {
	if i, ok := slices.BinarySearchFunc(l.byImage, m, compareImage); ok {
		l.byImage = slices.Delete(l.byImage, i, i+1)
	}
}

// move shifts what lies in the n bytes from from to to, where nothing is.
func (l *layout) move(from, to page.Addr, n uint64) {
	moved := l.cut(page.RangeOf(from, n))
	for _, m := range moved {
		m.Range = m.Range.Shift(to - from)
		l.insert(m)
	}
}

func (l *layout) clone() layout {
	return layout{slices.Clone(l.byProc), slices.Clone(l.byImage), l.longest, l.shared, l.apart}
}
