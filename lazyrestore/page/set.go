package page

import (
	"iter"
	"slices"
	"sort"
)

// A Set is a set of addresses, kept as sorted ranges of which no two touch.
// The zero value is the empty set. Lookups take O(log n), changes O(n) in the
// number of ranges. A Set must not be changed while another goroutine uses it.
type Set struct {
	r []Range
}

// SetOf is the set of all addresses in rs, which may overlap in any order.
func SetOf(rs ...Range) Set {
	var s Set
	for _, r := range rs {
		s.Add(r)
	}
	return s
}

// search is the index of the first range that ends after a.
func (s *Set) search(a Addr) int {
	return sort.Search(len(s.r), func(i int) bool { return s.r[i].End > a })
}

// Add puts all of r into the set.
func (s *Set) Add(r Range) {
	if r.Empty() {
		return
	}
	switch n := len(s.r); { // as who adds in order does:
	case n == 0 || s.r[n-1].End < r.Start:
		s.r = append(s.r, r)
		return
	case s.r[n-1].Start <= r.Start:
		s.r[n-1].End = max(s.r[n-1].End, r.End)
		return
	}
	// The ranges that overlap or touch r are i up to j; they become one.
	i := sort.Search(len(s.r), func(i int) bool { return s.r[i].End >= r.Start })
	j := i
	for j < len(s.r) && s.r[j].Start <= r.End {
		r.Start, r.End = min(r.Start, s.r[j].Start), max(r.End, s.r[j].End)
		j++
	}
	s.r = slices.Replace(s.r, i, j, r)
}

// Remove takes all of r out of the set.
func (s *Set) Remove(r Range) {
	if r.Empty() {
		return
	}
	i := s.search(r.Start)
	j := i
	var keep []Range
	for j < len(s.r) && s.r[j].Start < r.End {
		if left := (Range{s.r[j].Start, r.Start}); !left.Empty() {
			keep = append(keep, left)
		}
		if right := (Range{r.End, s.r[j].End}); !right.Empty() {
			keep = append(keep, right)
		}
		j++
	}
	s.r = slices.Replace(s.r, i, j, keep...)
}

// Contains reports whether a is in the set.
func (s *Set) Contains(a Addr) bool {
	i := s.search(a)
	return i < len(s.r) && s.r[i].Start <= a
}

// Covers reports whether all of r is in the set.
func (s *Set) Covers(r Range) bool {
	if r.Empty() {
		return true
	}
	i := s.search(r.Start)
	return i < len(s.r) && s.r[i].Covers(r)
}

// Within yields, in order, the parts of r that are in the set.
func (s *Set) Within(r Range) iter.Seq[Range] {
	return func(yield func(Range) bool) {
		for i := s.search(r.Start); i < len(s.r) && s.r[i].Start < r.End; i++ {
			if !yield(s.r[i].Intersect(r)) {
				return
			}
		}
	}
}

// All yields the set's ranges in order.
func (s *Set) All() iter.Seq[Range] { return slices.Values(s.r) }

// Count is how many ranges All yields.
func (s *Set) Count() int { return len(s.r) }

// Len is the number of addresses in the set.
func (s *Set) Len() uint64 {
	var n uint64
	for _, r := range s.r {
		n += r.Len()
	}
	return n
}

// Empty reports whether the set holds nothing.
func (s *Set) Empty() bool { return len(s.r) == 0 }

// Clone is an independent copy of the set.
func (s *Set) Clone() Set { return Set{slices.Clone(s.r)} }
