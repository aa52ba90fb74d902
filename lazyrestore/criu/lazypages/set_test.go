package lazypages

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/convert"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pagexfer"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// at is where the task of these tests has its memory.
const at = page.Addr(0x10000)

// A stretch is pages of a task, which are in the set if there are bytes of them.
type stretch struct {
	pages int
	flags imgfile.Flags
	seed  uint64
}

// bytes are the pages.
func (s stretch) bytes() []byte { return uffdtest.Pattern(s.seed, s.pages<<page.Shift) }

// dump makes the image set of task 7 in dir, whose memory is stretches from at on.
func dump(t *testing.T, dir string, stretches ...stretch) *imgfile.Dir {
	t.Helper()
	d, err := imgfile.Open(dir)
	must(t, err)
	tree, err := os.ReadFile("../imgfile/testdata/dump/pstree.img")
	must(t, err)
	must(t, os.WriteFile(d.File("pstree.img"), tree, 0o600))
	inventory, err := os.ReadFile("../imgfile/testdata/dump/inventory.img")
	must(t, err)
	must(t, os.WriteFile(d.File("inventory.img"), inventory, 0o600))
	w, err := d.CreateMemory(imgfile.OfTask(taskOf(t, d)), 1)
	must(t, err)
	next := at
	for _, s := range stretches {
		if s.flags&imgfile.Present != 0 {
			must(t, w.WriteBytes(next, s.flags, s.bytes()))
		} else {
			must(t, w.Add(imgfile.Entry{Range: page.RangeOf(next, uint64(s.pages)<<page.Shift), Flags: s.flags}))
		}
		next += page.Addr(s.pages) << page.Shift
	}
	must(t, w.Close())
	return d
}

// taskOf is the first task of a set.
func taskOf(t *testing.T, d *imgfile.Dir) int {
	t.Helper()
	tasks, err := d.Tasks()
	must(t, err)
	return tasks[0].Pid
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// imported is the image of ours that is made of a set.
func imported(t *testing.T, d *imgfile.Dir) *image.Image {
	t.Helper()
	mem := new(imagetest.Mem)
	w, err := image.NewWriter(mem, image.WriterOptions{})
	must(t, err)
	m, err := convert.Import(t.Context(), d, w)
	must(t, err)
	_, err = w.Finish(t.Context(), m)
	must(t, err)
	im, err := image.Open(t.Context(), mem, image.OpenOptions{})
	must(t, err)
	return im
}

// read is n pages at the image address a.
func read(t *testing.T, im *image.Image, a page.Addr, n uint64) []byte {
	t.Helper()
	ix, err := im.LoadIndex(t.Context())
	must(t, err)
	frames := im.NewFrameReader(ix)
	defer frames.Close()
	var b []byte
	for r := page.RangeOf(a, n<<page.Shift); !r.Empty(); r.Start += page.Size {
		run, ok := ix.Lookup(r.Start)
		if !ok {
			b = append(b, make([]byte, page.Size)...)
			continue
		}
		plain, err := frames.Read(t.Context(), int(run.Frame), image.Demand)
		must(t, err)
		in := int(run.Offset)<<page.Shift + int(r.Start-run.Page)
		b = append(b, plain[in:in+page.Size]...)
	}
	return b
}

const (
	late  = imgfile.Present | imgfile.Lazy
	below = imgfile.Parent
)

// Where a set builds on others the compressed image has its pages elsewhere than the
// set by itself says: the image's own pagemap is what counts.
func TestPagesOfAChainInACompressedImage(t *testing.T) {
	top := t.TempDir()
	first, second := filepath.Join(top, "1"), filepath.Join(top, "2")
	must(t, os.Mkdir(first, 0o700))
	must(t, os.Mkdir(second, 0o700))
	must(t, os.Symlink("../1", filepath.Join(second, imgfile.ParentLink)))
	dump(t, first, stretch{16, late, 1})
	d := dump(t, second, stretch{4, below, 0}, stretch{4, late, 2}, stretch{8, below, 0})
	s, err := load(t.Context(), d, imported(t, d), nil)
	must(t, err)
	maps := s.tasks[taskOf(t, d)]
	if len(maps) != 1 || maps[0].Range != page.RangeOf(at+4*page.Size, 4<<page.Shift) {
		t.Fatalf("mappings %v", maps)
	}
	if got := read(t, s.image, maps[0].Image, 4); !bytes.Equal(got, stretch{pages: 4, seed: 2}.bytes()) {
		t.Error("the pages are not those of the set")
	}
}

// Of a chain whose topmost set is with a page server, those below are here, and their
// files come between what the server has of one task.
func TestPagesOfAChainWithAServer(t *testing.T) {
	top := t.TempDir()
	first, second := filepath.Join(top, "1"), filepath.Join(top, "2")
	must(t, os.Mkdir(first, 0o700))
	must(t, os.Mkdir(second, 0o700))
	must(t, os.Symlink("../1", filepath.Join(second, imgfile.ParentLink)))
	dump(t, first, stretch{8, late, 1})
	d := dump(t, second, stretch{2, late, 2}, stretch{2, imgfile.Parent | imgfile.Lazy, 0}, stretch{4, late, 3})
	there := bytes.Repeat([]byte{42}, 4<<page.Shift)
	server := &Server{Dialect: pagexfer.V41, Dial: func(context.Context) (net.Conn, error) {
		here, peer := net.Pipe()
		go give(peer, there)
		return here, nil
	}}
	s, err := load(t.Context(), d, nil, server)
	must(t, err)
	for _, m := range s.tasks[taskOf(t, d)] {
		want := there[:m.Len()]
		if m.Start == at+2*page.Size {
			want = stretch{pages: 8, seed: 1}.bytes()[2<<page.Shift : 4<<page.Shift]
		}
		if got := read(t, s.image, m.Image, m.Pages()); !bytes.Equal(got, want) {
			t.Errorf("pages %v are not those of their set", m.Range)
		}
	}
	must(t, s.close())
}

// give answers requests with content.
func give(c net.Conn, content []byte) {
	defer c.Close()
	for dec := pagexfer.NewDecoder(c); ; {
		h, err := dec.Next()
		if err != nil {
			return
		}
		reply := []byte{0, 0, 0, 0} // to the end of it all
		if h.Command == pagexfer.Get {
			h.Command, h.Flags = pagexfer.AddF, pagexfer.Present
			if reply, err = pagexfer.V41.Append(nil, h); err != nil {
				return
			}
			reply = append(reply, content[:h.Pages<<page.Shift]...)
		}
		if _, err := c.Write(reply); err != nil {
			return
		}
	}
}

// A compressed image of another dump gives no pages, whatever it has alike.
func TestCompressedImageOfAnotherSet(t *testing.T) {
	whole := stretch{16, late, 1}
	for name, spoil := range map[string]func(*testing.T, *imgfile.Dir){
		"another inventory": func(t *testing.T, d *imgfile.Dir) {
			b, err := os.ReadFile(d.File("inventory.img"))
			must(t, err)
			must(t, os.WriteFile(d.File("inventory.img"), append(b, 0, 0, 0, 0), 0o600))
		},
		"another task's registers": func(t *testing.T, d *imgfile.Dir) { record(t, d, "core-7.img", imgfile.MagicCore, 2) },
		"another task's areas":     func(t *testing.T, d *imgfile.Dir) { record(t, d, "mm-7.img", imgfile.MagicMM, 2) },
		"a page more":              func(t *testing.T, d *imgfile.Dir) { dump(t, d.Path(), whole, stretch{1, late, 2}) },
		"no pagemap":               func(t *testing.T, d *imgfile.Dir) { must(t, os.Remove(d.File(imgfile.OfTask(taskOf(t, d)).File()))) },
	} {
		t.Run(name, func(t *testing.T) {
			d := dump(t, t.TempDir(), whole)
			record(t, d, "core-7.img", imgfile.MagicCore, 1)
			record(t, d, "mm-7.img", imgfile.MagicMM, 1)
			im := imported(t, d)
			if _, err := load(t.Context(), d, im, nil); err != nil {
				t.Fatal(err)
			}
			spoil(t, d)
			if name == "no pagemap" { // of a task that lives
				must(t, os.WriteFile(d.File("mm-"+strconv.Itoa(taskOf(t, d))+".img"), nil, 0o600))
			}
			if _, err := load(t.Context(), d, im, nil); err == nil {
				t.Error("no error")
			}
		})
	}
}

// A pages file that is not what its pagemap lists, or is written to while its pages
// come, gives none.
func TestPagesFileOfAnotherTime(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"cut":    func(path string) error { return os.Truncate(path, 15<<page.Shift) },
		"longer": func(path string) error { return os.Truncate(path, 17<<page.Shift) },
		"a pipe": func(path string) error { return errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)) },
	} {
		t.Run(name, func(t *testing.T) {
			d := dump(t, t.TempDir(), stretch{16, late, 1})
			must(t, spoil(d.File("pages-1.img")))
			if _, err := load(t.Context(), d, nil, nil); err == nil {
				t.Error("no error")
			}
		})
	}
	d := dump(t, t.TempDir(), stretch{16, late, 1})
	long(t, d)
	s, err := load(t.Context(), d, nil, nil)
	must(t, err)
	defer s.close()
	b := make([]byte, page.Size)
	must(t, s.pages.ReadRange(t.Context(), pagesObject, b, 0, image.Demand))
	dump(t, d.Path(), stretch{16, late, 2}) // as criu dump does to the same directory
	if err := s.pages.ReadRange(t.Context(), pagesObject, b, 0, image.Demand); !errors.Is(err, imgfile.ErrDamaged) {
		t.Errorf("read of a file that was written anew: %v", err)
	}
	if ok, err := s.pages.ReadNow(pagesObject, b, 0); ok || err == nil {
		t.Errorf("read now: %v, %v", ok, err)
	}
}

// What is served has a sum of its own, for who goes on with it.
func TestSumOfWhatIsServed(t *testing.T) {
	d := dump(t, t.TempDir(), stretch{16, late, 1})
	long(t, d)
	sum := func(im *image.Image, server *Server) string {
		s, err := load(t.Context(), d, im, server)
		must(t, err)
		defer s.close()
		return s.sum()
	}
	here, there := &Server{Address: "here:1"}, &Server{Address: "there:1"}
	sums := []string{sum(nil, nil), sum(imported(t, d), nil), sum(nil, here), sum(nil, there)}
	if again := sum(nil, nil); again != sums[0] {
		t.Errorf("%s, and then %s", sums[0], again)
	}
	if again := sum(nil, here); again != sums[2] {
		t.Errorf("%s, and then %s", sums[2], again)
	}
	dump(t, d.Path(), stretch{16, late, 2})
	sums = append(sums, sum(nil, nil), sum(imported(t, d), nil))
	for _, name := range []string{"inventory.img", "core-7.img", "mm-7.img"} { // of another dump, whose memory is alike
		f, err := os.OpenFile(d.File(name), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		must(t, err)
		_, err = f.Write(make([]byte, 4))
		must(t, errors.Join(err, f.Close()))
		sums = append(sums, sum(nil, here))
	}
	n := len(sums)
	slices.Sort(sums)
	if len(slices.Compact(sums)) != n {
		t.Errorf("some are the same: %v", sums)
	}
}

// record makes a file with one record, which number tells from others.
func record(t *testing.T, d *imgfile.Dir, name string, magic imgfile.Magic, number uint32) {
	t.Helper()
	f, err := os.Create(d.File(name))
	must(t, err)
	w, err := imgfile.NewWriter(f, magic)
	must(t, err)
	must(t, w.Encode(&pagemap.PagemapHead{PagesId: &number}))
	must(t, f.Close())
}

// long has the pages file be written long ago: what is written to twice within a few
// milliseconds may have one time of writing.
func long(t *testing.T, d *imgfile.Dir) {
	t.Helper()
	must(t, os.Chtimes(d.File("pages-1.img"), time.Unix(1, 0), time.Unix(1, 0)))
}

// What does not say which images it is about is not gone on with.
func TestResumeOfAnOlderState(t *testing.T) {
	d := dump(t, t.TempDir(), stretch{16, late, 1})
	must(t, os.WriteFile(d.File(StateName), []byte(`{"keepers":[{"pid":1,"connection":-1}],"coming":0,"tasks":[7],"zombies":null}`), 0o600))
	if _, err := Resume(t.Context(), Options{Images: d.Path()}); !errors.Is(err, errUnknown) {
		t.Errorf("Resume: %v", err)
	}
}
