package pageserver

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// A Catalog is the images that a Server offers. What is in its directories is
// looked at when a client asks, so that images may come and go. Its methods may
// be called concurrently.
type Catalog struct {
	// MaxFiles is how many files of images may be open at a time, for all clients
	// together; 0: any number. It is set before a Server has the Catalog.
	MaxFiles int

	roots    []root
	entering chan struct{} // has room for those who open an image: each takes two descriptors more

	mu      sync.Mutex
	held    map[string][]*held // under mu: those of each name that somebody has open, the newest last
	files   int                // under mu: of all images that somebody has open, or is opening
	opening map[string]bool    // under mu: names of which somebody opens an image
	opened  sync.Cond          // of mu: somebody has ended doing so

	listing sync.Mutex         // one listing at a time
	known   map[string]summary // under listing: images as the last one found them
}

// A root is a path that the user has given.
type root struct {
	path string
	name string // of the image, if path is one; "" is a directory of images
}

// A DuplicateError is an image whose name another one has.
type DuplicateError struct {
	Name         string
	Path, Before string // the image, and the one that was there first
}

func (e *DuplicateError) Error() string {
	return fmt.Sprintf("%s and %s would both be served as %s", e.Before, e.Path, e.Name)
}

// mostEntering is how many images are opened at a time.
const mostEntering = 4

// NewCatalog offers images: each path is one, or a directory of them. An
// image's name is the last element of its path; the error is a *DuplicateError
// where two have one name, else an *fs.PathError.
func NewCatalog(paths ...string) (*Catalog, error) {
	c := &Catalog{held: make(map[string][]*held), opening: make(map[string]bool), entering: make(chan struct{}, mostEntering)}
	c.opened.L = &c.mu
	first := make(map[string]string)
	for _, path := range paths {
		r, names, err := look(path)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			at := r.imagePath(name)
			if before, twice := first[name]; twice {
				return nil, &DuplicateError{Name: name, Path: at, Before: before}
			}
			first[name] = at
		}
		c.roots = append(c.roots, r)
	}
	return c, nil
}

// look says what path is, and which images are there now.
func look(path string) (root, []string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return root{}, nil, err
	}
	entries, err := os.ReadDir(abs)
	if err != nil {
		return root{}, nil, err
	}
	if _, err := os.Lstat(filepath.Join(abs, image.ManifestObject)); err == nil {
		name := filepath.Base(abs)
		if !wire.ValidName(name) {
			return root{}, nil, &fs.PathError{Op: "serve", Path: path, Err: fmt.Errorf("%q cannot be the name of an image: it begins with a dot, has spaces or control characters, or is too long", name)}
		}
		return root{path: abs, name: name}, []string{name}, nil
	}
	r := root{path: abs}
	var names []string
	for _, e := range entries {
		if name := e.Name(); wire.ValidName(name) {
			if _, err := os.Lstat(filepath.Join(abs, name, image.ManifestObject)); err == nil {
				names = append(names, name)
			}
		}
	}
	return r, names, nil
}

// imagePath is where the image of that name is, or would be.
func (r root) imagePath(name string) string {
	if r.name != "" {
		return r.path
	}
	return filepath.Join(r.path, name)
}

// Without symbolic links in the way that would lead out of the directory.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS

// openat2 opens what is there for reading. O_NONBLOCK: a FIFO in the place of
// an object must not make us wait.
func openat2(dirfd int, name string, flags, resolve uint64) (int, error) {
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | flags, Resolve: resolve}
	for {
		fd, err := unix.Openat2(dirfd, name, &how)
		// EAGAIN: something was renamed while the kernel looked.
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}

// openDir opens the directory of an image; fs.ErrNotExist if this root has
// none of that name.
func (r root) openDir(name string) (int, error) {
	if r.name != "" && r.name != name {
		return -1, fs.ErrNotExist
	}
	// The user's own path is followed wherever it leads.
	fd, err := openat2(unix.AT_FDCWD, r.path, unix.O_DIRECTORY, 0)
	if err != nil || r.name != "" {
		return fd, err
	}
	defer unix.Close(fd)
	return openat2(fd, name, unix.O_DIRECTORY, beneath)
}

// acquire opens the image of that name for one more user, who gives it to
// release: the one with the digest wanted, if somebody has that open, be there another
// one under the name by now. The error is a *wire.Error.
func (c *Catalog) acquire(name string, digest []byte) (*held, error) {
	if !wire.ValidName(name) {
		return nil, &wire.Error{Code: wire.CodeNoImage, Text: "not the name of an image"}
	}
	c.begin(name)
	defer c.end(name)
	if h := c.find(name, func(h *held) bool { return string(h.digest[:]) == string(digest) }); h != nil {
		return h, nil
	}
	c.entering <- struct{}{}
	defer func() { <-c.entering }()
	var first error
	for _, r := range c.roots {
		dir, err := r.openDir(name)
		if err == nil {
			h, err := c.acquireAt(name, dir)
			if err = errors.Join(err, unix.Close(dir)); !errors.Is(err, errNoManifest) {
				return h, err
			}
			first = cmp.Or(first, err)
			continue
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			first = cmp.Or(first, err)
		}
	}
	switch {
	case first == nil:
		return nil, &wire.Error{Code: wire.CodeNoImage, Text: "there is no image " + name}
	case errors.Is(first, errNoManifest):
		return nil, damaged(name, image.ManifestObject, fs.ErrNotExist)
	case errors.Is(first, unix.EXDEV), errors.Is(first, unix.ELOOP):
		return nil, &wire.Error{Code: wire.CodeNoImage, Text: name + " leads out of the directory that is served"}
	}
	return nil, &wire.Error{Code: wire.CodeFailed, Text: fmt.Sprintf("open image %s: %v", name, first)}
}

// errNoManifest is a directory that is no image, whatever its name: another root may have one.
var errNoManifest = errors.New("it has no manifest")

// begin waits until nobody else opens an image of that name: its files are to be opened, and
// counted, once.
func (c *Catalog) begin(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.opening[name] {
		c.opened.Wait()
	}
	c.opening[name] = true
}

func (c *Catalog) end(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.opening, name)
	c.opened.Broadcast()
}

// find gives the newest image of that name which others have open, is still as it was, and is
// the one wanted; nil if there is none.
func (c *Catalog) find(name string, wanted func(*held) bool) *held {
	c.mu.Lock()
	var found *held
	for _, h := range slices.Backward(c.held[name]) {
		if wanted(h) {
			found = h
			found.refs++
			break
		}
	}
	c.mu.Unlock()
	if found != nil && !found.unchanged() {
		c.release(found)
		return nil
	}
	return found
}

// acquireAt gives the image in an open directory: the one that others have
// open, if it is the same and still as it was. The error is errNoManifest or a *wire.Error.
func (c *Catalog) acquireAt(name string, dir int) (*held, error) {
	id, err := identify(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, errNoManifest
	case err != nil:
		return nil, damaged(name, image.ManifestObject, err)
	}
	if h := c.find(name, func(h *held) bool { return h.id == id }); h != nil {
		return h, nil
	}
	reserved := 0
	h, err := open(name, dir, func(files int) error {
		err := c.reserve(name, files)
		if err == nil {
			reserved = files
		}
		return err
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.files -= reserved
		return nil, err
	}
	h.refs++
	c.held[name] = append(c.held[name], h)
	return h, nil
}

// reserve counts files that are about to be opened, if there may be so many.
func (c *Catalog) reserve(name string, files int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.MaxFiles == 0 || c.files+files <= c.MaxFiles:
		c.files += files
		return nil
	case files > c.MaxFiles:
		return failure(wire.CodeFailed, "image %s: its %d files are too many: this server may have %d open; a higher limit of open files would do, or fewer connections", name, files, c.MaxFiles)
	}
	return failure(wire.CodeBusy, "image %s: its %d files are too many beside those that clients have open", name, files)
}

// release lets an image go.
func (c *Catalog) release(h *held) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h.refs--
	if h.refs > 0 {
		return
	}
	c.held[h.name] = slices.DeleteFunc(c.held[h.name], func(o *held) bool { return o == h })
	if len(c.held[h.name]) == 0 {
		delete(c.held, h.name)
	}
	c.files -= len(h.objects)
	h.close()
}

// A summary is what a listing says of an image.
type summary struct {
	id identity
	wire.Image
}

// list gives the images whose names sort after a name, ascending. What cannot
// be opened is left out.
func (c *Catalog) list(after string) []wire.Image {
	c.listing.Lock()
	defer c.listing.Unlock()
	seen := make(map[string]summary)
	for _, r := range c.roots {
		for _, name := range r.names() {
			if _, twice := seen[name]; twice {
				continue // the first root that has an image is the one that is served
			}
			if s, found := c.summarize(r, name); found {
				seen[name] = s
			}
		}
	}
	c.known = seen
	var images []wire.Image
	for name, s := range seen {
		if name > after && s.Name != "" {
			images = append(images, s.Image)
		}
	}
	slices.SortFunc(images, func(a, b wire.Image) int { return cmp.Compare(a.Name, b.Name) })
	return images
}

// Names are the names of the images that there are now, ascending.
func (c *Catalog) Names() []string {
	names := []string{}
	for _, im := range c.list("") {
		names = append(names, im.Name)
	}
	return names
}

// names are what may be images of a root.
func (r root) names() []string {
	if r.name != "" {
		return []string{r.name}
	}
	f, err := os.Open(r.path)
	if err != nil {
		return nil
	}
	defer f.Close()
	names, _ := f.Readdirnames(-1) // as far as it comes
	return slices.DeleteFunc(names, func(name string) bool { return !wire.ValidName(name) })
}

// summarize looks at one image, or remembers it. It reports whether there is one, and says
// nothing of one that cannot be opened.
func (c *Catalog) summarize(r root, name string) (s summary, found bool) {
	dir, err := r.openDir(name)
	if err != nil {
		return summary{}, false
	}
	defer unix.Close(dir)
	id, err := identify(dir)
	if err != nil {
		return summary{}, !errors.Is(err, fs.ErrNotExist)
	}
	if s := c.known[name]; s.id == id {
		return s, true
	}
	h, err := open(name, dir, nil)
	if err != nil {
		return summary{}, true
	}
	return summary{id: h.id, Image: wire.Image{Name: name, Size: h.size, Digest: h.digest}}, true
}

// inUse is how many images somebody has open.
func (c *Catalog) inUse() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, list := range c.held {
		n += len(list)
	}
	return n
}
