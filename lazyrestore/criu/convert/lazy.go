package convert

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// mayBeLate is the memory that criu restore --lazy-pages registers with its
// userfaultfd, by the VMAs of a task: CRIU's own rule. Without VMAs in the set
// it is none.
func mayBeLate(dir *imgfile.Dir, id imgfile.MemoryID) (late page.Set, err error) {
	if id.Kind != imgfile.TaskMemory {
		return late, nil
	}
	vmas, err := dir.VMAs(int(id.ID))
	if errors.Is(err, fs.ErrNotExist) {
		return late, nil
	}
	const (
		kind    = unix.MAP_ANONYMOUS | unix.MAP_PRIVATE
		never   = unix.MAP_LOCKED | unix.MAP_HUGETLB
		special = imgfile.VMAVDSO | imgfile.VMAVVAR | imgfile.VMAVsyscall | imgfile.VMAAIORing | imgfile.VMAGuard
	)
	for _, v := range vmas {
		if v.Flags&kind == kind && v.Flags&never == 0 && v.Status&imgfile.VMAAnonPrivate != 0 && v.Status&special == 0 {
			late.Add(v.Range)
		}
	}
	return late, err
}

// standing is the entries of a pagemap as an image has them, that stands alone
// and whose lazy pages are in its frames. CRIU does not say of pages that are in
// the set below that they may come late; those that may, by late, do.
func standing(entries []imgfile.Entry, late *page.Set) []imgfile.Entry {
	all := make([]imgfile.Entry, 0, len(entries))
	add := func(r page.Range, f imgfile.Flags) {
		if k := len(all) - 1; k >= 0 && all[k].End == r.Start && all[k].Flags == f {
			all[k].End = r.End
		} else if !r.Empty() {
			all = append(all, imgfile.Entry{Range: r, Flags: f})
		}
	}
	for _, e := range entries {
		switch {
		case e.Flags&imgfile.Lazy != 0:
			add(e.Range, imgfile.Lazy)
		case e.Flags&imgfile.Parent == 0:
			add(e.Range, imgfile.Present)
		default:
			at := e.Start
			for r := range late.Within(e.Range) {
				add(page.Range{Start: at, End: r.Start}, imgfile.Present)
				add(r, imgfile.Lazy)
				at = r.End
			}
			add(page.Range{Start: at, End: e.End}, imgfile.Present)
		}
	}
	return all
}
