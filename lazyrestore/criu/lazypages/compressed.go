package lazypages

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"sort"
	"strings"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// distinct are files that nothing changes after the dump. Those of two dumps differ, if
// not each of them: a tree may be the same, and so may a task that did nothing between.
var distinct = []string{"inventory.img", "pstree.img", "core-*.img", "mm-*.img"}

// isDistinct reports whether a file of that name is one of them.
func isDistinct(name string) bool {
	return slices.ContainsFunc(distinct, func(pattern string) bool {
		match, err := path.Match(pattern, name)
		return err == nil && match
	})
}

// distinctIn is the sums of those in a directory.
func distinctIn(dir *imgfile.Dir) (string, error) {
	entries, err := os.ReadDir(dir.Path())
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, e := range entries { // by their names
		if !isDistinct(e.Name()) {
			continue
		}
		sum, err := sumOf(dir.File(e.Name()))
		if err != nil {
			return "", err
		}
		fmt.Fprintln(&b, e.Name(), sum)
	}
	return b.String(), nil
}

// ofSet is an error if img was not made of the set in dir: the pages of another dump
// would be taken for those of this one, as processes that are dumped twice mostly have
// their memory at the same places. What only one of the two has says nothing: an
// image that a page server received holds the memory alone.
func ofSet(img *image.Image, dir *imgfile.Dir) error {
	for name, object := range img.Manifest().Objects {
		if !isDistinct(name) {
			continue
		}
		sum, err := sumOf(dir.File(name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if sum != object.SHA256 {
			return fmt.Errorf("%w: the compressed image was made of another set, or its %s is not the one that is in %s", imgfile.ErrDamaged, name, dir.Path())
		}
	}
	return nil
}

// sumOf is the SHA-256 of a file, as a manifest has it.
func sumOf(name string) (string, error) {
	f, err := imgfile.OpenFile(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// inImage is where an image of ours has the lazy pages of a memory, by the pagemap
// that is in it: that of the set is another one where the set builds on others.
func inImage(ctx context.Context, img *image.Image, id imgfile.MemoryID) ([]page.Mapping, error) {
	name := id.File()
	if _, ok := img.Manifest().Objects[name]; !ok {
		return nil, fmt.Errorf("the compressed image has no %s: it was not made of this set", name)
	}
	b, err := img.ReadObject(ctx, name)
	if err != nil {
		return nil, err
	}
	pm, err := imgfile.ReadPagemap(bytes.NewReader(b), name)
	if err != nil {
		return nil, err
	}
	var maps []page.Mapping
	for e, err := range pm.InImage(name) {
		if err != nil {
			return nil, err
		}
		if e.Flags == imgfile.Lazy {
			maps = join(maps, e.Range, e.At)
		}
	}
	return maps, nil
}

// cut appends to maps the parts of have, which ascend, that r consists of.
func cut(maps, have []page.Mapping, r page.Range) ([]page.Mapping, error) {
	i := sort.Search(len(have), func(i int) bool { return have[i].End > r.Start })
	for ; !r.Empty(); i++ {
		if i == len(have) || have[i].Start > r.Start {
			return nil, fmt.Errorf("the page at %s may come late, and the compressed image has it not among those: it was made of another set", r.Start)
		}
		part := page.Range{Start: r.Start, End: min(r.End, have[i].End)}
		maps = join(maps, part, have[i].ImageAddr(part.Start))
		r.Start = part.End
	}
	return maps, nil
}
