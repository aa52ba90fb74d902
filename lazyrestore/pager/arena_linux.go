package pager

import (
	"golang.org/x/sys/unix"
)

const (
	arenaHuge  = 2 << 20
	arenaSmall = arenaHuge / 4 // from here on memory is of huge pages
)

// An arena gives memory for tables that are as large as the image is, and that
// the first fault waits for. It is of huge pages, where there is much of it:
// taking 3 MB from the kernel a page at a time costs more than reading and
// checking what goes into it. It is not Go's heap, so that it sets off no
// collection.
type arena struct{ maps [][]byte }

// alloc gives n zero bytes, on the boundary of a page; nil where there is no such
// memory.
func (a *arena) alloc(n int) []byte {
	if n < arenaSmall {
		return make([]byte, n)
	}
	// The kernel puts a mapping of a whole number of huge pages on a boundary of
	// them (Linux 6.7).
	size := (n + arenaHuge - 1) &^ (arenaHuge - 1)
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil
	}
	_ = unix.Madvise(b, unix.MADV_HUGEPAGE) // without it the pages are small
	a.maps = append(a.maps, b)
	return b[:n:n]
}

// free gives everything back.
func (a *arena) free() {
	for _, b := range a.maps {
		_ = unix.Munmap(b)
	}
	a.maps = nil
}
