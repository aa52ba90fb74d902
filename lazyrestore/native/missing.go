package native

import (
	"fmt"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// stillMissing is what of missing, the pages that a pager has not installed by
// its own account, is really not there. A pager books a page after it has
// copied it; in between the process may have run, and written to the page, so
// the copy in the image that it was restored from is an old one. What the
// kernel says of a process that stands still is the truth.
//
// Shared memory is left as it is: content asks the object itself.
func stillMissing(scan *proc.PageScanner, missing []page.Mapping) ([]page.Mapping, error) {
	var out []page.Mapping
	for _, m := range missing {
		if m.Shared {
			out = append(out, m)
			continue
		}
		rest := page.SetOf(m.Range)
		err := scan.Scan(m.Range, func(r proc.PageRun) error {
			if r.Categories&(proc.PagePresent|proc.PageSwapped) != 0 {
				rest.Remove(r.Range)
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("scan %v, which a pager has not installed: %w", m.Range, err)
		}
		for r := range rest.All() {
			part := m
			part.Range, part.Image = r, m.ImageAddr(r.Start)
			out = append(out, part)
		}
	}
	return out, nil
}
