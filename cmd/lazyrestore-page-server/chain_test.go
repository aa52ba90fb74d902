package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/convert"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/criutest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pageset"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pagexfer"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/store"
)

// steps is how many dumps make a chain.
const steps = 3

// What comes in steps, each of which leaves to those before what has not changed
// since, CRIU restores: from the chain, and from one compressed image of it. The
// dumps are played, after one of CRIU's own, for pages that CRIU leaves out need
// a kernel that tracks changes.
func TestChainThroughPageServer(t *testing.T) {
	criutest.Need(t)
	top := mkdirs(t, "local", "0", "1", "2")
	at := func(name string) string { return filepath.Join(top, name) }
	subject := criutest.Start(t, "tree", 8)
	subject.Dump(t, at("local"))
	for step := range steps {
		var args []string
		if step > 0 {
			args = []string{"--prev-images-dir", "../" + string(rune('0'+step-1))}
		}
		s := startServer(t, at(string(rune('0'+step))), args...)
		play(t, s.address, pagexfer.V41, at("local"), step)
		s.wait(t)
	}
	s := startServer(t, at("image"), "--prev-images-dir", "../1", "--codec", "lz4")
	play(t, s.address, pagexfer.V42, at("local"), steps-1)
	s.wait(t)
	for _, dir := range []string{"2", "image"} {
		joinOthers(t, at("local"), at(dir))
	}
	daemon := start(t, role(t, "lazy-pages", at("image"), at("image"), ""))
	subject.Restore(t, at("image"), "--lazy-pages")
	subject.Tell(t, "go")
	subject.Wait(t)
	daemon.wait(t)
	subject.Restore(t, at("2"))
	subject.Wait(t)
	importSet(t, at("2"), at("imported"))
	daemon = start(t, role(t, "lazy-pages", at("imported"), at("imported"), ""))
	subject.Restore(t, at("imported"), "--lazy-pages")
	subject.Wait(t)
	daemon.wait(t)
}

// importSet makes an image of a set. What a chain has of private memory comes
// late, though CRIU does not say so of what is in the sets below.
func importSet(t *testing.T, set, to string) {
	t.Helper()
	dir, err := imgfile.Open(set)
	if err != nil {
		t.Fatal(err)
	}
	staging, err := store.CreateDir(to)
	if err != nil {
		t.Fatal(err)
	}
	w, err := image.NewWriter(staging, image.WriterOptions{Spec: chunk.Spec{Codec: chunk.LZ4}})
	if err != nil {
		t.Fatal(err)
	}
	m, err := convert.Import(context.Background(), dir, w)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Finish(context.Background(), m); err != nil {
		t.Fatal(err)
	}
	if n := w.Stats().MemoryBytes; n < 8<<20 {
		t.Errorf("only %d bytes come late", n)
	}
	if err := staging.Commit(); err != nil {
		t.Fatal(err)
	}
}

// joinOthers copies what is not about pages.
func joinOthers(t *testing.T, from, to string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(from, "*.img"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasPrefix(filepath.Base(f), "page") {
			continue
		}
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, filepath.Base(f)), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// play sends the set in dir as a dump does that is one of several: each page
// gets its content at the step that its number tells, has another before, and
// is left to the parent after.
func play(t *testing.T, address string, d pagexfer.Dialect, dir string, step int) {
	t.Helper()
	set, err := imgfile.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	ids, err := set.Memories()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	files, err := pageset.OfFiles(set)
	if err != nil {
		t.Fatal(err)
	}
	p := &player{t: t, conn: conn, out: bufio.NewWriterSize(conn, 1<<20), d: d, set: files, step: step}
	defer p.set.Close()
	for _, id := range ids {
		pm, err := set.Pagemap(id)
		if err != nil {
			t.Fatal(err)
		}
		p.memory(id, pm)
	}
	p.say(pagexfer.Header{Command: pagexfer.Close}, nil)
	p.reply(4)
}

type player struct {
	t    *testing.T
	conn net.Conn
	out  *bufio.Writer
	d    pagexfer.Dialect
	set  *pageset.Set
	step int
}

func (p *player) say(h pagexfer.Header, data []byte) {
	p.t.Helper()
	b, err := p.d.Append(nil, h)
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.out.Write(append(b, data...)); err != nil {
		p.t.Fatal(err)
	}
}

func (p *player) reply(n int) {
	p.t.Helper()
	if err := p.out.Flush(); err != nil {
		p.t.Fatal(err)
	}
	if _, err := io.ReadFull(p.conn, make([]byte, n)); err != nil {
		p.t.Fatal(err)
	}
}

func (p *player) memory(id imgfile.MemoryID, pm *imgfile.Pagemap) {
	p.t.Helper()
	number := pagexfer.ImageID(pagexfer.Kind(id.Kind), id.ID)
	p.say(pagexfer.Header{Command: pagexfer.Open2, ID: number}, nil)
	p.reply(1)
	m, err := p.set.Memory(context.Background(), id)
	if err != nil {
		p.t.Fatal(err)
	}
	r := p.set.NewReader()
	defer r.Close()
	buf := make([]byte, page.Size)
	for _, e := range pm.Entries {
		for at := e.Start; at < e.End; at += page.Size {
			h := pagexfer.Header{Command: pagexfer.AddF, Flags: pagexfer.Flags(e.Flags), Pages: 1, Addr: at, ID: number}
			when := steps - 1
			if e.Flags&imgfile.Lazy != 0 {
				when = int(at>>page.Shift) % steps
			}
			switch {
			case when < p.step:
				h.Flags = pagexfer.InParent
				p.say(h, nil)
				continue
			case when > p.step:
				p.say(h, bytes.Repeat([]byte{0xee}, page.Size))
				continue
			}
			if err := r.Read(context.Background(), m, at, buf, image.Demand); err != nil {
				p.t.Fatal(err)
			}
			p.say(h, buf)
		}
	}
}
