package imgfile

import (
	"fmt"
	"iter"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// What an image of ours that was made of a CRIU set can hold.
const (
	fileShift = 42
	// MaxPagesID is the highest number that a pages file may have. CRIU counts
	// from 1 on, its page server from 65537 on.
	MaxPagesID = 1<<(64-fileShift) - 2
	// MaxPagesBytes is how long a pages file may be: 4 TiB.
	MaxPagesBytes = 1 << fileShift
)

// ImageAddr is where an image of ours, made of a set, has the byte at off of
// what the pages file with the number pagesID was in that set: the files of a set lie side by side in its address
// space, whatever task or shared memory object their pages are of, and the
// pagemaps, which are carried along, say which is which. So an image is
// written while pages come in the order of the files, and a set can be made
// of it again to the byte.
//
// Of such an image only the lazy pages are in its frames. Its own pages files
// hold the others, and its pagemaps say of the lazy ones no longer that they
// are present: it is an image set, too, and one that CRIU restores from with
// --lazy-pages only. A page was at the sum of all that its pagemap lists before it.
//
// pagesID and off must not be above MaxPagesID and MaxPagesBytes.
func ImageAddr(pagesID uint32, off int64) page.Addr {
	return page.Addr(pagesID)<<fileShift + page.Addr(off)
}

// A Placed is an entry, and where an image of ours has its pages if they are lazy.
type Placed struct {
	Entry
	At page.Addr
}

// InImage is the entries of the pagemap called name, which an image of ours has, until
// one cannot be in it: the error is a DamagedError.
func (pm *Pagemap) InImage(name string) iter.Seq2[Placed, error] {
	return func(yield func(Placed, error) bool) {
		if pm.PagesID > MaxPagesID {
			yield(Placed{}, &DamagedError{File: name, Err: fmt.Errorf("pages file %d", pm.PagesID)})
			return
		}
		var off int64
		for _, e := range pm.Entries {
			n := int64(e.Len())
			if e.Flags&Parent != 0 || n > MaxPagesBytes-off {
				yield(Placed{}, &DamagedError{File: name, Err: fmt.Errorf("pages %v have no place in an image", e.Range)})
				return
			}
			if !yield(Placed{e, ImageAddr(pm.PagesID, off)}, nil) {
				return
			}
			off += n
		}
	}
}
