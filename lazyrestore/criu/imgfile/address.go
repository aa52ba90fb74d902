package imgfile

import "github.com/lazyrestore/lazyrestore/lazyrestore/page"

// What an image of ours that was made of a CRIU set can hold.
const (
	fileShift = 42
	// MaxPagesID is the highest number that a pages file may have.
	MaxPagesID = 1<<(57-fileShift) - 1
	// MaxPagesBytes is how long a pages file may be: 4 TiB.
	MaxPagesBytes = 1 << fileShift
)

// ImageAddr is where an image of ours has the byte at off of the pages file
// with the number pagesID: the files of a set lie side by side in its address
// space, whatever task or shared memory object their pages are of, and the
// pagemaps, which are carried along, say which is which. So an image is
// written while pages come in the order of the files, and a set can be made
// of it again to the byte.
//
// pagesID and off must not be above MaxPagesID and MaxPagesBytes.
func ImageAddr(pagesID uint32, off int64) page.Addr {
	return page.Addr(pagesID)<<fileShift + page.Addr(off)
}
