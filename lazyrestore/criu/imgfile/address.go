package imgfile

import "github.com/lazyrestore/lazyrestore/lazyrestore/page"

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
// --lazy-pages only. Run.Whole is where the pages were.
//
// pagesID and off must not be above MaxPagesID and MaxPagesBytes.
func ImageAddr(pagesID uint32, off int64) page.Addr {
	return page.Addr(pagesID)<<fileShift + page.Addr(off)
}
