package native

import (
	"fmt"
	"math/bits"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// Memory of huge pages (hugetlb). All of a huge page comes at once, eager or
// lazy; the flags of its mapping say how large it is.

const (
	mapDroppable = 0x8 // MAP_DROPPABLE, a type of mapping as MAP_PRIVATE is
	mapHugeShift = 26  // MAP_HUGE_SHIFT
	mapHugeMask  = 0x3f
	maxHugeShift = 34 // 16 GiB, the largest of any architecture
)

// hugeTLB notes the size of a mapping's pages.
func (c *capture) hugeTLB(v *proc.VMA, out *VMA) {
	shift := bits.TrailingZeros64(v.PageSize)
	switch {
	case v.PageSize == page.Size && v.Flags&proc.VMHugeTLB == 0:
		if v.Flags&proc.VMDontExpand != 0 {
			c.refused.add(vmaName(v), "its flags are not preserved: "+proc.VMDontExpand.String(), helpCRIU)
		}
	case v.Flags&proc.VMHugeTLB == 0 || v.PageSize != 1<<shift || shift <= page.Shift || shift > maxHugeShift:
		c.refused.add(vmaName(v), fmt.Sprintf("it has pages of %d bytes", v.PageSize), helpCRIU)
	default:
		out.Flags |= unix.MAP_HUGETLB | uint32(shift)<<mapHugeShift
	}
}

// pageSize is the size of v's pages.
func (v *VMA) pageSize() uint64 {
	if v.Flags&unix.MAP_HUGETLB == 0 {
		return page.Size
	}
	return 1 << (v.Flags >> mapHugeShift & mapHugeMask)
}

// whole is r grown to whole pages of v.
func (v *VMA) whole(r page.Range) page.Range {
	size := page.Addr(v.pageSize())
	return page.Range{Start: r.Start &^ (size - 1), End: (r.End + size - 1) &^ (size - 1)}.Intersect(v.Range)
}
