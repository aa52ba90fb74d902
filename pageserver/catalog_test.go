package pageserver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

func symlink(t *testing.T, to, at string) {
	t.Helper()
	if err := os.Symlink(to, at); err != nil {
		t.Fatal(err)
	}
}

// Names do not lead out of the served directory, whatever is in it.
func TestNamesStayInside(t *testing.T) {
	outside := t.TempDir()
	writeImage(t, filepath.Join(outside, "secret"), map[string][]byte{"process.bin": []byte("secret")})
	s := newSite(t, ServerOptions{})
	symlink(t, filepath.Join(outside, "secret"), filepath.Join(s.dir, "absolute"))
	rel, err := filepath.Rel(s.dir, filepath.Join(outside, "secret"))
	if err != nil {
		t.Fatal(err)
	}
	symlink(t, rel, filepath.Join(s.dir, "relative"))
	symlink(t, "/proc/self/cwd", filepath.Join(s.dir, "magic"))
	symlink(t, "loop", filepath.Join(s.dir, "loop"))
	symlink(t, "one", filepath.Join(s.dir, "latest"))
	if err := os.WriteFile(filepath.Join(s.dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(s.dir, "empty"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(s.dir, "empty"), filepath.Join(s.dir, ".one.tmp-1")); err != nil {
		t.Fatal(err)
	}
	// Objects that lead out.
	writeImage(t, filepath.Join(s.dir, "linked"), map[string][]byte{"process.bin": []byte("secret")})
	replaceBy := func(image, object string, mk func(path string) error) {
		t.Helper()
		path := filepath.Join(s.dir, image, object)
		if err := errors.Join(os.Remove(path), mk(path)); err != nil {
			t.Fatal(err)
		}
	}
	replaceBy("linked", "process.bin", func(path string) error {
		return os.Symlink(filepath.Join(outside, "secret", "process.bin"), path)
	})
	writeImage(t, filepath.Join(s.dir, "my image"), map[string][]byte{"process.bin": {}})
	writeImage(t, filepath.Join(s.dir, "fifo"), map[string][]byte{"process.bin": {}})
	replaceBy("fifo", "process.bin", func(path string) error { return unix.Mkfifo(path, 0o600) })
	writeImage(t, filepath.Join(s.dir, "device"), map[string][]byte{"process.bin": {}})
	replaceBy("device", "process.bin", func(path string) error { return os.Symlink("/dev/zero", path) })

	p := dial(t, s.listenTCP(t))
	p.greet(1)
	for i, tt := range []struct {
		name string
		code wire.Code // 0 is opened
	}{
		{"latest", 0},
		{"absolute", wire.CodeNoImage},
		{"relative", wire.CodeNoImage},
		{"magic", wire.CodeNoImage},
		{"loop", wire.CodeNoImage},
		{"file", wire.CodeNoImage},
		{".one.tmp-1", wire.CodeNoImage},
		{"one/../../secret", wire.CodeNoImage},
		{"my image", wire.CodeNoImage},
		{strings.Repeat("x", wire.MaxName), wire.CodeNoImage},
		{"linked", wire.CodeDamaged},
		{"fifo", wire.CodeDamaged},
		{"device", wire.CodeDamaged},
	} {
		_, err := p.open(uint32(i+10), tt.name)
		if tt.code == 0 {
			if err != nil {
				t.Errorf("open %s: %v", tt.name, err)
			}
			continue
		}
		wants(t, "open "+tt.name, err, tt.code)
	}
}

// list reads a whole listing.
func (p *peer) list(after string) []wire.Image {
	p.t.Helper()
	p.id++
	p.write(wire.List{After: after}.Append(nil, p.id))
	var all []wire.Image
	for {
		m := p.next()
		if err := p.failed(m); err != nil {
			p.t.Fatal(err)
		}
		l, err := wire.ParseListed(m.Body)
		if err != nil {
			p.t.Fatal(err)
		}
		if all = append(all, l.Images...); m.Flags&wire.FlagLast != 0 {
			return all
		}
	}
}

func TestList(t *testing.T) {
	s := newSite(t, ServerOptions{})
	var want []string
	for i := range 300 { // more than one message
		name := fmt.Sprintf("image-%03d%s", i, strings.Repeat("-", 200))
		writeImage(t, filepath.Join(s.dir, name), map[string][]byte{"process.bin": []byte(name)})
		want = append(want, name)
	}
	want = append(want, "one")
	// Those that no address can name.
	for _, name := range []string{"my image", "tab\t", "line\n", "bell\a", "\x1b[31m", "\x7f", ".hidden"} {
		writeImage(t, filepath.Join(s.dir, name), map[string][]byte{"process.bin": []byte(name)})
	}
	if err := os.Mkdir(filepath.Join(s.dir, "no-image"), 0o700); err != nil {
		t.Fatal(err)
	}
	p := dial(t, s.listenTCP(t))
	p.greet(1)
	names := func(images []wire.Image) (names []string) {
		for _, im := range images {
			names = append(names, im.Name)
		}
		return names
	}
	all := p.list("")
	if got := names(all); !slices.Equal(got, want) {
		t.Errorf("%d images, want %d: %v", len(got), len(want), got)
	}
	if got := names(p.list(want[298])); !slices.Equal(got, want[299:]) {
		t.Errorf("after the 299th: %v", got)
	}
	one := all[len(all)-1]
	o, err := p.open(1, "one")
	if err != nil {
		t.Fatal(err)
	}
	size := int64(0)
	for _, object := range o.Objects {
		size += object.Size
	}
	if one.Digest != o.Digest || one.Size != size {
		t.Errorf("listed %+v, opened %x with %d bytes", one, o.Digest, size)
	}

	// Images come and go.
	if err := os.RemoveAll(filepath.Join(s.dir, want[0])); err != nil {
		t.Fatal(err)
	}
	writeImage(t, filepath.Join(s.dir, "zero"), map[string][]byte{})
	if got := names(p.list("")); !slices.Equal(got, append(want[1:], "zero")) {
		t.Errorf("then %d images, want %d", len(got), len(want))
	}
}

func TestCatalogOfPaths(t *testing.T) {
	dir := t.TempDir()
	writeImage(t, filepath.Join(dir, "a", "one"), map[string][]byte{})
	writeImage(t, filepath.Join(dir, "b", "one"), map[string][]byte{})
	writeImage(t, filepath.Join(dir, "b", "two"), map[string][]byte{})
	c, err := NewCatalog(filepath.Join(dir, "a"), filepath.Join(dir, "b", "two"))
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Names(); !slices.Equal(got, []string{"one", "two"}) {
		t.Errorf("images %v", got)
	}
	var twice *DuplicateError
	if _, err := NewCatalog(filepath.Join(dir, "a"), filepath.Join(dir, "b")); !errors.As(err, &twice) || twice.Name != "one" {
		t.Errorf("one name twice: %v", err)
	}
	if _, err := NewCatalog(filepath.Join(dir, "c")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

// What is listed is what is opened: of a name the image in the first directory that has one,
// be it damaged.
func TestSameNameInTwoDirectories(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	c, err := NewCatalog(a, b)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(a, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	want := func(names []string, code wire.Code) {
		t.Helper()
		if got := c.Names(); !slices.Equal(got, names) {
			t.Errorf("listed %q, want %q", got, names)
		}
		h, err := c.acquire("x", nil)
		if code != 0 {
			wants(t, "open", err, code)
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		c.release(h)
	}
	want([]string{}, wire.CodeDamaged)
	writeImage(t, filepath.Join(b, "x"), map[string][]byte{})
	want([]string{"x"}, 0)
	writeImage(t, filepath.Join(a, "x"), map[string][]byte{})
	want([]string{"x"}, 0)
	if err := os.Truncate(filepath.Join(a, "x", "manifest.json"), 3); err != nil {
		t.Fatal(err)
	}
	want([]string{}, wire.CodeDamaged)
}

// An image that is replaced stays for those who have it open; others get the
// new one.
func TestImageIsReplaced(t *testing.T) {
	s := newSite(t, ServerOptions{})
	addr := s.listenTCP(t)
	before := dial(t, addr)
	before.greet(1)
	old, err := before.open(1, "one")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(s.dir, "one")
	if err := os.Rename(dir, filepath.Join(s.dir, ".old")); err != nil {
		t.Fatal(err)
	}
	objects := map[string][]byte{"pages.lz4": content(9, 1<<20)}
	writeImage(t, dir, objects)
	if err := os.RemoveAll(filepath.Join(s.dir, ".old")); err != nil {
		t.Fatal(err)
	}
	after := dial(t, addr)
	after.greet(2)
	o, err := after.open(1, "one")
	if err != nil || o.Digest == old.Digest {
		t.Fatalf("the new image: %+v, %v", o, err)
	}
	got, err := before.read("pages.lz4", 0, 5<<20, 0)
	same(t, "the old image", got, err, s.objects["pages.lz4"][:5<<20])
	got, err = after.read("pages.lz4", 0, 1<<20, 0)
	same(t, "the new image", got, err, objects["pages.lz4"])
	if held := s.Stats().Held; held != 2 {
		t.Errorf("%d images are counted as open, want 2", held)
	}
	// Who says which one it wants has it while anybody has.
	again := dial(t, addr)
	again.greet(1)
	wish := func(image uint32, digest [32]byte) [32]byte {
		t.Helper()
		again.id++
		again.write(wire.Open{Image: image, Name: "one", Fields: wire.Fields(nil).Append(wire.TagDigest, digest[:])}.Append(nil, again.id))
		o, err := wire.ParseOpened(again.next().Body)
		if err != nil {
			t.Fatal(err)
		}
		return o.Digest
	}
	if wish(1, old.Digest) != old.Digest || wish(2, o.Digest) != o.Digest || wish(3, [32]byte{1}) != o.Digest {
		t.Error("another image than the one that was wanted")
	}
	got, err = again.read("pages.lz4", 0, 5<<20, 0)
	same(t, "the old image again", got, err, s.objects["pages.lz4"][:5<<20])
	before.nc.Close()
	again.nc.Close()
	for limit := time.Now().Add(20 * time.Second); s.Stats().Held != 1 && time.Now().Before(limit); {
		time.Sleep(time.Millisecond)
	}
	last := dial(t, addr)
	last.greet(1)
	again = last
	if wish(1, old.Digest) != o.Digest {
		t.Error("an image that nobody has open any more")
	}
}

// Objects that are written to under the server are found out.
func TestImageIsWrittenTo(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(path string) error
		code   wire.Code // of opening it again; 0 is that it opens
	}{
		{"truncated", func(path string) error { return os.Truncate(path, 1000) }, wire.CodeDamaged},
		{"emptied", func(path string) error { return os.Truncate(path, 0) }, wire.CodeDamaged},
		{"longer", func(path string) error { return os.Truncate(path, 6<<20) }, wire.CodeDamaged},
		{"touched", func(path string) error { return os.Chtimes(path, time.Time{}, time.Unix(1, 0)) }, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t, ServerOptions{})
			addr := s.listenTCP(t)
			p := dial(t, addr)
			p.greet(1)
			p.mustOpen()
			path := filepath.Join(s.dir, "one", "pages.lz4")
			if err := tt.change(path); err != nil {
				t.Fatal(err)
			}
			for _, flags := range []uint8{0, wire.FlagBackground} {
				_, err := p.read("pages.lz4", 2000, 100, flags)
				wants(t, "a short read", err, wire.CodeChanged)
				_, err = p.read("pages.lz4", 0, 5<<20, flags)
				wants(t, "a long read", err, wire.CodeChanged)
			}
			got, err := p.read("process.bin", 0, 100_000, 0)
			same(t, "another object", got, err, s.objects["process.bin"])
			_, err = p.open(2, "one")
			if tt.code != 0 {
				wants(t, "opened again", err, tt.code)
			} else if err != nil {
				t.Errorf("opened again: %v", err)
			}
		})
	}
}

// What is no whole image is not served as one.
func TestDamagedImages(t *testing.T) {
	s := newSite(t, ServerOptions{})
	p := dial(t, s.listenTCP(t))
	p.greet(1)
	for name, damage := range map[string]func(dir string) error{
		"no-manifest":    func(dir string) error { return os.Remove(filepath.Join(dir, "manifest.json")) },
		"no-object":      func(dir string) error { return os.Remove(filepath.Join(dir, "pages.idx")) },
		"empty-manifest": func(dir string) error { return os.Truncate(filepath.Join(dir, "manifest.json"), 0) },
		"huge-manifest":  func(dir string) error { return os.Truncate(filepath.Join(dir, "manifest.json"), 1<<40) },
		"flipped-bit": func(dir string) error {
			path := filepath.Join(dir, "manifest.json")
			b, err := os.ReadFile(path)
			b[40] ^= 1
			return errors.Join(err, os.WriteFile(path, b, 0o600))
		},
	} {
		dir := filepath.Join(s.dir, name)
		writeImage(t, dir, map[string][]byte{})
		if err := damage(dir); err != nil {
			t.Fatal(err)
		}
		_, err := p.open(7, name)
		wants(t, name, err, wire.CodeDamaged)
	}
	if got := p.list(""); len(got) != 1 {
		t.Errorf("listed: %v", got)
	}
}

// An image has as many objects as an OPENED can list, and of one that has more it is not said
// that it is damaged.
func TestImageOfManyObjects(t *testing.T) {
	s := newSite(t, ServerOptions{})
	p := dial(t, s.listenTCP(t))
	p.greet(1)
	write := func(name string, n int) map[string][]byte {
		objects := make(map[string][]byte, n)
		for i := range n {
			objects[fmt.Sprintf("pagemap-shmem-%08d.img", i)] = content(byte(i), 100)
		}
		writeImage(t, filepath.Join(s.dir, name), objects)
		return objects
	}
	objects := write("many", 1000)
	write("more", 2000)
	o, err := p.open(1, "many")
	if err != nil {
		t.Fatal(err)
	}
	if len(o.Objects) != len(objects) {
		t.Errorf("%d objects, want %d", len(o.Objects), len(objects))
	}
	for name, want := range objects {
		got, err := p.read(name, 0, len(want), 0)
		same(t, name, got, err, want)
	}
	_, err = p.open(2, "more")
	wants(t, "more objects than a reply has room for", err, wire.CodeLimit)
	if e := new(wire.Error); !errors.As(err, &e) || !strings.Contains(e.Text, "2003 objects") {
		t.Error(err)
	}
}

// The files of images that clients have open are bounded, each counted once however many have it.
func TestImagesTogether(t *testing.T) {
	s := newSite(t, ServerOptions{})
	s.catalog.MaxFiles = 2*5 + 1 // "one" has five
	for _, name := range []string{"two", "three", "broken"} {
		writeImage(t, filepath.Join(s.dir, name), map[string][]byte{"process.bin": {1}, "eager.raw": {}})
	}
	if err := os.Remove(filepath.Join(s.dir, "broken", "pages.idx")); err != nil {
		t.Fatal(err)
	}
	many := map[string][]byte{}
	for i := range 20 {
		many[fmt.Sprintf("core-%d.img", i)] = nil
	}
	writeImage(t, filepath.Join(s.dir, "many"), many)
	p := dial(t, s.listenTCP(t))
	p.greet(1)
	for i, tt := range []struct {
		name string
		code wire.Code // 0 is opened
	}{
		{"broken", wire.CodeDamaged},
		{"broken", wire.CodeDamaged},
		{"one", 0},
		{"one", 0},
		{"two", 0},
		{"three", wire.CodeBusy},
		{"broken", wire.CodeBusy},
		{"many", wire.CodeFailed},
		{"two", 0},
	} {
		_, err := p.open(uint32(i), tt.name)
		if tt.code != 0 {
			wants(t, "open "+tt.name, err, tt.code)
		} else if err != nil {
			t.Errorf("open %s: %v", tt.name, err)
		}
	}
	for _, i := range []uint32{2, 3} {
		p.id++
		p.write(wire.AppendClose(nil, p.id, i))
		if m := p.next(); m.Type != wire.TypeDone {
			t.Fatal(m)
		}
	}
	if _, err := p.open(20, "three"); err != nil {
		t.Errorf("when there is room again: %v", err)
	}
	if got := len(p.list("")); got != 4 {
		t.Errorf("%d images are listed, want all but the broken one", got)
	}
}

// Many clients that open one image at once open its files once.
func TestImageIsOpenedOnce(t *testing.T) {
	s := newSite(t, ServerOptions{})
	const files = 500 // so that one opens them while others ask
	objects := map[string][]byte{}
	for i := range files - 3 {
		objects[fmt.Sprintf("core-%d.img", i)] = nil
	}
	writeImage(t, filepath.Join(s.dir, "many"), objects)
	s.catalog.MaxFiles = files
	addr := s.listenTCP(t)
	for range 20 {
		var peers []*peer
		for i := range byte(8) {
			p := dial(t, addr)
			p.greet(i)
			peers = append(peers, p)
		}
		for _, p := range peers {
			p.write(wire.Open{Image: 1, Name: "many"}.Append(nil, 1))
		}
		for _, p := range peers {
			if m := p.next(); m.Type != wire.TypeOpened {
				t.Fatalf("%v: %v", m.Type, p.failed(m))
			}
			p.nc.Close()
		}
	}
}
