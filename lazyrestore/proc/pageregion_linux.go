package proc

import (
	"encoding/binary"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// PAGEMAP_SCAN as a call that another process makes of its own pages.
const (
	PageScanRequest = pagemapScanRequest
	PageScanSize    = 12 * 8 // struct pm_scan_arg
	PageRegionSize  = 3 * 8  // struct page_region
)

// PageScan is the argument of a scan of r for pages that are any of the
// categories, of which up to n runs go to the address vec. Their number is the
// call's result; where there may have been more, it is n.
func PageScan(r page.Range, anyOf Categories, vec uint64, n int) []uint64 {
	return []uint64{
		PageScanSize, 0, uint64(r.Start), uint64(r.End), 0, vec, uint64(n), 0,
		0, 0, uint64(anyOf), 0, // inverted, mask, any of, to be returned
	}
}

// PageRegion is the first of the runs that a scan has found.
func PageRegion(b []byte) page.Range {
	return page.Range{Start: page.Addr(binary.NativeEndian.Uint64(b)), End: page.Addr(binary.NativeEndian.Uint64(b[8:]))}
}
