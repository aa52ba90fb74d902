package native

import (
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// A page that is there is not missing, whatever a pager says: it may have
// copied the page, and the process written to it, without having booked it.
func TestStillMissing(t *testing.T) {
	const pages = 8
	mem, err := unix.Mmap(-1, 0, pages*page.Size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	for _, there := range []int{2, 3, 6} {
		mem[there*page.Size] = 1
	}
	scan, err := proc.NewPageScanner(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer scan.Close()
	base := addressOf(mem)
	part := func(from, to int, shared bool) page.Mapping {
		m := page.Mapping{Range: page.RangeOf(base+page.Addr(from)*page.Size, uint64(to-from)*page.Size), Image: 0x5000_0000 + page.Addr(from)*page.Size, PageSize: page.Size}
		if shared {
			m.Image, m.Shared = m.Image+page.ImageShared, true
		}
		return m
	}
	got, err := stillMissing(scan, []page.Mapping{part(0, 5, false), part(5, 8, false), part(0, 8, true)})
	want := []page.Mapping{part(0, 2, false), part(4, 5, false), part(5, 6, false), part(7, 8, false), part(0, 8, true)}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
}
