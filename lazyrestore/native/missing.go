package native

import (
	"fmt"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// stillMissing is what of missing, the pages that a pager has not installed by
// its own account, is really not there. A pager books a page after it has
// copied it; in between the process may have run, and written to the page, so
// the copy in the image that it was restored from is an old one. And nothing tells
// it of an exec: what lay at its pages' places is gone, and what lies there now is
// registered with nobody. What the kernel says of a process that stands still is
// the truth: vmas are its mappings.
//
// Shared memory is left as it is where it is registered: content asks the object
// itself, for a page table may have a mark of a page that is lost.
func stillMissing(scan *proc.PageScanner, vmas []proc.VMA, missing []page.Mapping) ([]page.Mapping, error) {
	var private, shared page.Set
	for i := range vmas {
		switch v := &vmas[i]; {
		case v.Flags&proc.VMUffdMissing == 0:
		case v.Shared:
			shared.Add(v.Range)
		default:
			private.Add(v.Range)
		}
	}
	var out []page.Mapping
	for _, m := range missing {
		var rest page.Set
		for r := range private.Within(m.Range) {
			rest.Add(r)
			err := scan.Scan(r, func(r proc.PageRun) error {
				if r.Categories&(proc.PagePresent|proc.PageSwapped) != 0 {
					rest.Remove(r.Range)
				}
				return nil
			})
			if err != nil {
				return nil, fmt.Errorf("scan %v, which a pager has not installed: %w", r, err)
			}
		}
		for r := range shared.Within(m.Range) {
			rest.Add(r)
		}
		for r := range rest.All() {
			part := m
			part.Range, part.Image = r, m.ImageAddr(r.Start)
			out = append(out, part)
		}
	}
	return out, nil
}
