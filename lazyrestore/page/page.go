// Package page holds the words that every other package speaks: addresses,
// ranges of addresses, sets of ranges, and the mapping from a process's
// memory to the image that fills it. It is pure: no system calls, no state.
//
// All values are plain data. Reading one from several goroutines at once is
// safe; changing a Set is not.
package page

import (
	"fmt"
	"strconv"
)

// The base page of the architectures we support, in bytes. Memory with larger
// pages (hugetlb) says so in Mapping.PageSize.
const (
	Shift = 12
	Size  = 1 << Shift
)

// Addr is an address in bytes: in a process, or in an image's own address
// space, where private memory keeps its virtual address and each shared
// memory object has a place above ImageShared.
type Addr uint64

// ImageShared is the first image address of shared memory objects, above all
// that a user process can map (with five-level page tables: 1<<56).
const ImageShared Addr = 1 << 57

// String gives the address in hex, as /proc and debuggers do.
func (a Addr) String() string { return "0x" + strconv.FormatUint(uint64(a), 16) }

// Down is a rounded down to a page boundary.
func (a Addr) Down() Addr { return a &^ (Size - 1) }

// Up is a rounded up to a page boundary.
func (a Addr) Up() Addr { return (a + Size - 1) &^ (Size - 1) }

// Aligned reports whether a lies on a page boundary.
func (a Addr) Aligned() bool { return a&(Size-1) == 0 }

// A Range is the addresses from Start up to but not including End.
type Range struct {
	Start, End Addr
}

// RangeOf is the range of n bytes that begins at start.
func RangeOf(start Addr, n uint64) Range { return Range{start, start + Addr(n)} }

// Len is the size of r in bytes; an empty or inverted range has none.
func (r Range) Len() uint64 {
	if r.End <= r.Start {
		return 0
	}
	return uint64(r.End - r.Start)
}

// Pages is the number of base pages in r, whose bounds lie on pages.
func (r Range) Pages() uint64 { return r.Len() >> Shift }

// Empty reports whether r holds no address.
func (r Range) Empty() bool { return r.End <= r.Start }

// Contains reports whether a lies in r.
func (r Range) Contains(a Addr) bool { return r.Start <= a && a < r.End }

// Covers reports whether all of o lies in r.
func (r Range) Covers(o Range) bool { return o.Empty() || (r.Start <= o.Start && o.End <= r.End) }

// Overlaps reports whether r and o share an address.
func (r Range) Overlaps(o Range) bool { return !r.Intersect(o).Empty() }

// Intersect is what r and o share; it is empty where they share nothing.
func (r Range) Intersect(o Range) Range {
	return Range{max(r.Start, o.Start), min(r.End, o.End)}
}

// Shift is r moved up by delta bytes (modulo 2^64, so that a negative
// difference of two addresses works too).
func (r Range) Shift(delta Addr) Range { return Range{r.Start + delta, r.End + delta} }

// String gives r as /proc/PID/maps writes it.
func (r Range) String() string { return fmt.Sprintf("%08x-%08x", uint64(r.Start), uint64(r.End)) }

// A Mapping says which image addresses fill a range of a process's memory:
// the byte at Range.Start+i is the byte at Image+i of the image.
type Mapping struct {
	Range
	Image    Addr
	PageSize uint64 // Size, or the huge page size of a hugetlb mapping
	Shared   bool   // shared memory: shmem, memfd or shared hugetlb
	Object   Object // of shared memory: what the mapping shows a part of, and may grow by; zero if it is not known
}

// An Object is shared memory, of which mappings show parts.
type Object struct {
	Range             // its image addresses, all of them: beyond its end the image has other objects
	Dev, Inode uint64 // of its file; 0 if that is not known
}

// ImageRange is where in the image the mapping's bytes are.
func (m Mapping) ImageRange() Range { return RangeOf(m.Image, m.Len()) }

// ImageAddr translates an address of the process, which must lie in m.
func (m Mapping) ImageAddr(a Addr) Addr { return m.Image + (a - m.Start) }
