package pageserver

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pageset"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pagexfer"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

var dialects = []pagexfer.Dialect{pagexfer.V41, pagexfer.V42}

const (
	lazy    = pagexfer.Present | pagexfer.Lazy
	present = pagexfer.Present
)

// A dumper says what criu dump does.
type dumper struct {
	t    *testing.T
	conn net.Conn
	d    pagexfer.Dialect
	id   uint64
}

func dial(t *testing.T, l net.Listener, d pagexfer.Dialect) *dumper {
	t.Helper()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &dumper{t: t, conn: conn, d: d}
}

func (d *dumper) send(h pagexfer.Header, data ...byte) {
	d.t.Helper()
	b, err := d.d.Append(nil, h)
	if err != nil {
		d.t.Fatal(err)
	}
	if _, err := d.conn.Write(append(b, data...)); err != nil {
		d.t.Error(err)
	}
}

// reply is n bytes of the server.
func (d *dumper) reply(n int) []byte {
	d.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(d.conn, b); err != nil {
		d.t.Errorf("no reply: %v", err)
	}
	return b
}

func (d *dumper) open(k pagexfer.Kind, number uint64) (hasParent bool) {
	d.t.Helper()
	d.id = pagexfer.ImageID(k, number)
	d.send(pagexfer.Header{Command: pagexfer.Open2, ID: d.id})
	return d.reply(1)[0] == 1
}

// content is pages whose bytes tell where and by whom they were written.
func content(seed uint64, at page.Addr, pages int) []byte {
	b := make([]byte, pages<<page.Shift)
	for i := range pages {
		v := seed<<40 + uint64(at)>>page.Shift + uint64(i)
		for j := 0; j < page.Size; j += 8 {
			v = v*6364136223846793005 + 1442695040888963407
			binary.LittleEndian.PutUint64(b[i<<page.Shift+j:], v&0x0707_0707_0707_0707)
		}
	}
	return b
}

func (d *dumper) add(f pagexfer.Flags, seed uint64, at page.Addr, pages int) {
	d.t.Helper()
	var data []byte
	if f&pagexfer.Present != 0 {
		data = content(seed, at, pages)
	}
	d.send(pagexfer.Header{Command: pagexfer.AddF, Flags: f, Pages: uint64(pages), Addr: at, ID: d.id}, data...)
}

func (d *dumper) close() {
	d.t.Helper()
	d.send(pagexfer.Header{Command: pagexfer.Close})
	if status := binary.LittleEndian.Uint32(d.reply(4)); status != 0 {
		d.t.Errorf("status %d", status)
	}
	d.conn.Close()
}

// dropped waits until the server closes the connection.
func (d *dumper) dropped() {
	d.t.Helper()
	if b, err := io.ReadAll(d.conn); len(b) > 0 {
		d.t.Errorf("the server said %x, %v", b, err)
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// receive runs Receive in the background.
func receive(t *testing.T, target Target) (net.Listener, <-chan error) {
	t.Helper()
	l := listen(t)
	done := make(chan error, 1)
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(stop)
	go func() { done <- Receive(ctx, l, target, Options{}) }()
	return l, done
}

// A place is a target and how to read what it has made.
type place struct {
	name   string
	target Target
	set    func() *pageset.Set
}

// places is a target of each kind, that builds on prev if that is not "".
func places(t *testing.T, prev string) []place {
	t.Helper()
	dir := t.TempDir()
	files, err := NewFiles(dir, prev)
	if err != nil {
		t.Fatal(err)
	}
	var below *pageset.Set
	if prev != "" {
		below = setIn(t, prev)
	}
	mem := new(imagetest.Mem)
	w, err := image.NewWriter(mem, image.WriterOptions{Spec: chunk.Spec{Codec: chunk.LZ4}})
	if err != nil {
		t.Fatal(err)
	}
	commit := func(ctx context.Context) error {
		_, err := w.Finish(ctx, image.Manifest{})
		return err
	}
	return []place{
		{"files", files, func() *pageset.Set { return setIn(t, dir) }},
		{"image", NewImage(w, below, commit), func() *pageset.Set {
			im, err := image.Open(context.Background(), mem, image.OpenOptions{})
			if err != nil {
				t.Fatal(err)
			}
			s, err := pageset.OfImage(context.Background(), im)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}},
	}
}

func setIn(t *testing.T, dir string) *pageset.Set {
	t.Helper()
	d, err := imgfile.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	s, err := pageset.OfFiles(d)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// expect compares pages of a set.
func expect(t *testing.T, s *pageset.Set, id imgfile.MemoryID, at page.Addr, want []byte) {
	t.Helper()
	m, err := s.Memory(context.Background(), id)
	if err != nil {
		t.Error(err)
		return
	}
	r := s.NewReader()
	defer r.Close()
	got := make([]byte, len(want))
	if err := r.Read(context.Background(), m, at, got, image.Demand); err != nil {
		t.Error(err)
	} else if !bytes.Equal(got, want) {
		t.Errorf("%s: pages at %s differ", id.File(), at)
	}
}

func TestReceive(t *testing.T) {
	for _, d := range dialects {
		for _, p := range places(t, "") {
			t.Run(d.String()+" "+p.name, func(t *testing.T) {
				l, done := receive(t, p.target)
				c := dial(t, l, d)
				if c.open(pagexfer.Shmem, 99) {
					t.Error("there is a parent")
				}
				c.add(present, 1, 0, 3)
				c.open(pagexfer.Process, 7)
				c.add(present, 1, 0x10000, 2)
				c.add(lazy, 1, 0x12000, 600)
				c.add(lazy, 1, 0x7fff_0000_0000, 1)
				c.send(pagexfer.Header{Command: pagexfer.Add, Pages: 1, Addr: 0x7fff_0000_2000, ID: c.id}, content(1, 0x7fff_0000_2000, 1)...)
				c.close()
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				s := p.set()
				defer s.Close()
				expect(t, s, imgfile.MemoryID{Kind: imgfile.SharedMemory, ID: 99}, 0, content(1, 0, 3))
				expect(t, s, imgfile.OfTask(7), 0x10000, content(1, 0x10000, 602))
				expect(t, s, imgfile.OfTask(7), 0x7fff_0000_0000, content(1, 0x7fff_0000_0000, 1))
				expect(t, s, imgfile.OfTask(7), 0x7fff_0000_2000, content(1, 0x7fff_0000_2000, 1))
				m, err := s.Memory(context.Background(), imgfile.OfTask(7))
				if err != nil {
					t.Fatal(err)
				}
				late := 0
				for r, lazy := range m.Parts {
					if lazy {
						late += int(r.Pages())
					}
				}
				if late != 601 {
					t.Errorf("%d pages may come late", late)
				}
			})
		}
	}
}

// A dump of three steps, each of which leaves to the one before what it has.
func TestChain(t *testing.T) {
	top := t.TempDir()
	step := func(n uint64, prev string, say func(c *dumper)) string {
		dir := filepath.Join(top, string(rune('0'+n)))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		f, err := NewFiles(dir, prev)
		if err != nil {
			t.Fatal(err)
		}
		l, done := receive(t, f)
		c := dial(t, l, pagexfer.V41)
		if got := c.open(pagexfer.Process, 7); got != (prev != "") {
			t.Errorf("step %d: has a parent: %v", n, got)
		}
		say(c)
		c.close()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		return dir
	}
	step(1, "", func(c *dumper) { c.add(lazy, 1, 0x10000, 16) })
	second := step(2, "../1", func(c *dumper) {
		c.add(pagexfer.InParent, 0, 0x10000, 4)
		c.add(lazy, 2, 0x14000, 4)
		c.send(pagexfer.Header{Command: pagexfer.Hole, Pages: 8, Addr: 0x18000, ID: c.id})
	})
	want := append(content(1, 0x10000, 2), content(3, 0x12000, 1)...)
	want = append(append(append(want, content(1, 0x13000, 1)...), content(2, 0x14000, 4)...), content(1, 0x18000, 2)...)
	for _, p := range places(t, second) {
		t.Run(p.name, func(t *testing.T) {
			l, done := receive(t, p.target)
			c := dial(t, l, pagexfer.V42)
			c.send(pagexfer.Header{Command: pagexfer.Parent, ID: pagexfer.ImageID(pagexfer.Process, 7)})
			if b := c.reply(4); b[0] != 1 {
				t.Errorf("parent of 7: %x", b)
			}
			c.send(pagexfer.Header{Command: pagexfer.Parent, ID: pagexfer.ImageID(pagexfer.Process, 8)})
			if b := c.reply(4); b[0] != 0 {
				t.Errorf("parent of 8: %x", b)
			}
			c.open(pagexfer.Process, 7)
			c.add(pagexfer.InParent, 0, 0x10000, 2)
			c.add(lazy, 3, 0x12000, 1)
			c.add(pagexfer.InParent|pagexfer.Lazy, 0, 0x13000, 7)
			c.open(pagexfer.Process, 8)
			c.add(lazy, 3, 0x10000, 1)
			c.close()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			s := p.set()
			defer s.Close()
			expect(t, s, imgfile.OfTask(7), 0x10000, want)
			expect(t, s, imgfile.OfTask(8), 0x10000, content(3, 0x10000, 1))
		})
	}
}

// Whatever ends a dump early, or is wrong about it, is an error, and what was
// there before it stays.
func TestReceiveRefuses(t *testing.T) {
	for name, say := range map[string]func(c *dumper){
		"given up":   func(c *dumper) { c.add(lazy, 1, 0x20000, 1); c.conn.Close() },
		"cut header": func(c *dumper) { c.conn.Write([]byte{6, 0, 4}); c.conn.Close() },
		"cut pages": func(c *dumper) {
			c.add(lazy, 1, 0x20000, 1)
			c.send(pagexfer.Header{Command: pagexfer.AddF, Flags: lazy, Pages: 1 << 30, Addr: 0x40000, ID: c.id}, 1, 2, 3)
			c.conn.Close()
		},
		"overlap":      func(c *dumper) { c.add(lazy, 1, 0x20000, 2); c.add(lazy, 1, 0x21000, 1) },
		"no flags":     func(c *dumper) { c.add(0, 1, 0x20000, 2) },
		"two flags":    func(c *dumper) { c.add(lazy|pagexfer.InParent, 1, 0x20000, 2) },
		"unknown flag": func(c *dumper) { c.add(lazy|8, 1, 0x20000, 2) },
		"no parent":    func(c *dumper) { c.add(pagexfer.InParent, 1, 0x20000, 2) },
		"command":      func(c *dumper) { c.send(pagexfer.Header{Command: 99}) },
		"a request":    func(c *dumper) { c.send(pagexfer.Header{Command: pagexfer.Get, Pages: 1, Addr: 0x20000, ID: 7}) },
		"no such kind": func(c *dumper) { c.send(pagexfer.Header{Command: pagexfer.Open2, ID: 0x703}) },
		"twice": func(c *dumper) {
			c.open(pagexfer.Process, 8)
			c.send(pagexfer.Header{Command: pagexfer.Open2, ID: 0x701})
		},
		"kernel address": func(c *dumper) {
			c.send(pagexfer.Header{Command: pagexfer.AddF, Flags: pagexfer.InParent, Pages: 1, Addr: 1 << 63, ID: c.id})
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			old := []byte("the set that was there")
			if err := os.WriteFile(filepath.Join(dir, "pagemap-7.img"), old, 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := NewFiles(dir, "")
			if err != nil {
				t.Fatal(err)
			}
			l, done := receive(t, f)
			c := dial(t, l, pagexfer.V41)
			c.open(pagexfer.Process, 7)
			c.add(lazy, 1, 0x10000, 4)
			say(c)
			if err := <-done; err == nil {
				t.Error("no error")
			}
			entries, err := os.ReadDir(dir)
			if err != nil || len(entries) != 1 {
				t.Errorf("left: %v, %v", entries, err)
			}
			if b, _ := os.ReadFile(filepath.Join(dir, "pagemap-7.img")); !bytes.Equal(b, old) {
				t.Error("what was there is gone")
			}
		})
	}
}

// Strangers who come before a dump, or during it, do not disturb it.
func TestStrangersDuringDump(t *testing.T) {
	p := places(t, "")[0]
	l, done := receive(t, p.target)
	for _, say := range []string{"", "GET / HTTP/1.1\r\nHost: page-server\r\n\r\n", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03aaaaaaaaaaaaaaaaaa"} {
		s := dial(t, l, pagexfer.V41)
		s.conn.Write([]byte(say))
		if say == "" {
			s.conn.Close()
		}
		s.dropped()
	}
	dial(t, l, pagexfer.V41) // says nothing
	c := dial(t, l, pagexfer.V41)
	c.open(pagexfer.Process, 7)
	c.add(lazy, 1, 0x10000, 1)
	second := dial(t, l, pagexfer.V42)
	second.send(pagexfer.Header{Command: pagexfer.Open2, ID: pagexfer.ImageID(pagexfer.Process, 8)})
	second.dropped()
	c.close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	s := p.set()
	defer s.Close()
	expect(t, s, imgfile.OfTask(7), 0x10000, content(1, 0x10000, 1))
}

// Leftovers of a killed server go; those of one that runs stay.
func TestStages(t *testing.T) {
	dir := t.TempDir()
	running, err := NewFiles(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	defer running.Abort()
	if err := running.Begin(t.Context(), imgfile.OfTask(1)); err != nil {
		t.Fatal(err)
	}
	killed := take(t, dir, 1, 2)
	killed.lock.Close()
	again, err := NewFiles(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	defer again.Abort()
	for _, path := range []string{killed.stage.Path(), killed.dir.File(killed.names[0])} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a leftover stays: %s: %v", path, err)
		}
	}
	for _, path := range []string{running.stage.Path(), running.dir.File(running.names[0])} {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
}

func TestPrevImagesDir(t *testing.T) {
	dir := t.TempDir()
	if _, err := NewFiles(dir, "nonexistent"); err == nil || !strings.Contains(err.Error(), "--prev-images-dir") {
		t.Errorf("a set that is not there: %v", err)
	}
	if err := os.Symlink("..", filepath.Join(dir, imgfile.ParentLink)); err != nil {
		t.Fatal(err)
	}
	if _, err := NewFiles(dir, "/"); err == nil {
		t.Error("two sets to build on")
	}
	stale := t.TempDir()
	link := filepath.Join(stale, imgfile.ParentLink)
	if err := os.Symlink("nonexistent", link); err != nil {
		t.Fatal(err)
	}
	if _, err := NewFiles(stale, ""); err == nil || !strings.Contains(err.Error(), link) || strings.Contains(err.Error(), "--prev-images-dir") {
		t.Errorf("a link to a set that is not there: %v", err)
	}
	f, err := NewFiles(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Abort()
	if f.parent.set == nil {
		t.Error("the link that is there is not followed")
	}
}

// The files of a compressed image do not have its lazy pages: that none of them are there
// is said before a dump that builds on them begins.
func TestPrevImage(t *testing.T) {
	top := t.TempDir()
	for _, name := range []string{"image", "set"} {
		if err := os.Mkdir(filepath.Join(top, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(top, "image", image.ManifestObject), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := NewFiles(filepath.Join(top, "set"), "../image"); err == nil || !strings.Contains(err.Error(), "--codec") {
		t.Errorf("CRIU's files on an image of ours: %v", err)
	}
	if _, err := NewFiles(filepath.Join(top, "image"), ""); err == nil || !strings.Contains(err.Error(), "another directory") {
		t.Errorf("CRIU's files over an image of ours: %v", err)
	}
}

// A header that promises much makes nothing large of it.
func TestReceiveBoundedMemory(t *testing.T) {
	for _, p := range places(t, "") {
		l, done := receive(t, p.target)
		c := dial(t, l, pagexfer.V42)
		c.open(pagexfer.Process, 7)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		c.send(pagexfer.Header{Command: pagexfer.AddF, Flags: lazy, Pages: 1 << 28, Addr: 0x10000, ID: c.id}, content(1, 0x10000, 64)...)
		c.conn.Close()
		if err := <-done; err == nil {
			t.Errorf("%s: no error", p.name)
		}
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 16<<20 {
			t.Errorf("%s: %d bytes allocated", p.name, n)
		}
	}
}
