package pageserver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
)

// firstPagesID is the number of the first pages file that a page server makes:
// CRIU's own numbers them so, that they do not meet those that the dump makes.
const firstPagesID = 0x10000 + 1

// A directory may have dumps of several processes, one after another or at once. The number of a pages
// file is in its pagemap, and is found before the first page has come; so until the dump is complete an empty
// file of that name is in the directory, which nobody else makes then.

// reserve gives the next memory a number that no pages file of the directory has.
func (f *Files) reserve() (uint32, error) {
	for ; f.next <= imgfile.MaxPagesID; f.next++ {
		name := imgfile.PagesName(f.next)
		file, err := os.OpenFile(f.dir.File(name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		f.reserved[name] = true
		f.next++
		return f.next - 1, file.Close()
	}
	return 0, fmt.Errorf("%s has a pages file of each number up to %d", f.dir.Path(), imgfile.MaxPagesID)
}

// release gives up the numbers whose files have not been put in their place.
func (f *Files) release() {
	for name := range f.reserved {
		removeEmpty(f.dir.File(name))
	}
	clear(f.reserved)
}

// removeEmpty removes a pages file that is reserved only. What has pages is somebody's: CRIU's own
// server begins at firstPagesID, whatever is there. One that cannot be removed does no harm.
func removeEmpty(path string) {
	if st, err := os.Lstat(path); err == nil && st.Mode().IsRegular() && st.Size() == 0 {
		os.Remove(path)
	}
}
