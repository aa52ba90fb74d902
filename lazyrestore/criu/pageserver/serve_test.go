package pageserver

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/convert"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pageset"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pagexfer"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/pageserver/peerlog"
)

// serve runs Serve in the background.
func serve(t *testing.T, s *pageset.Set, opts Options) net.Listener {
	t.Helper()
	l := listen(t)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, s, opts) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// made is a set of many tasks, in files, each with ten pages here and some there.
func made(t *testing.T, tasks, pages int) string {
	t.Helper()
	dir := t.TempDir()
	d, err := imgfile.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i := range tasks {
		w, err := d.CreateMemory(imgfile.OfTask(i+1), uint32(i+1))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range []struct {
			at    page.Addr
			pages int
		}{{0x10000, 10}, {0x7fff_0000_0000, pages}} {
			if err := w.WriteBytes(e.at, imgfile.Lazy, content(uint64(i+1), e.at, e.pages)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// inImage is the set in dir as an image of ours.
func inImage(t *testing.T, dir string) *pageset.Set {
	t.Helper()
	d, err := imgfile.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	mem := new(imagetest.Mem)
	w, err := image.NewWriter(mem, image.WriterOptions{Spec: chunk.Spec{Codec: chunk.LZ4}})
	if err != nil {
		t.Fatal(err)
	}
	m, err := convert.Import(context.Background(), d, w)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Finish(context.Background(), m); err != nil {
		t.Fatal(err)
	}
	im, err := image.Open(context.Background(), mem, image.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := pageset.OfImage(context.Background(), im)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// fetch asks for all of r, as often as it takes.
func fetch(t *testing.T, c *pagexfer.Client, pid uint32, r page.Range) []byte {
	t.Helper()
	var all []byte
	room := make([]byte, pagexfer.MaxRequest<<page.Shift)
	for !r.Empty() {
		if err := c.Request(pagexfer.Request{PID: pid, Addr: r.Start, Pages: int(min(r.Pages(), pagexfer.MaxRequest))}); err != nil {
			t.Error(err)
			return nil
		}
		_, n, err := c.Receive(room)
		if err != nil {
			t.Errorf("%v: %v", r, err)
			return nil
		}
		all = append(all, room[:n<<page.Shift]...)
		r.Start += page.Addr(n << page.Shift)
	}
	return all
}

// Many clients at once, that restore the same tasks, and others after them.
func TestServe(t *testing.T) {
	dir := made(t, 3, 1100)
	for name, set := range map[string]*pageset.Set{"files": setIn(t, dir), "image": inImage(t, dir)} {
		t.Run(name, func(t *testing.T) {
			l := serve(t, set, Options{})
			want := map[uint32][]byte{}
			for pid := uint32(1); pid <= 3; pid++ {
				want[pid] = content(uint64(pid), 0x7fff_0000_0000, 1100)
			}
			for range 2 {
				var wg sync.WaitGroup
				for i := range 8 {
					wg.Go(func() {
						d := dialects[i%2]
						conn := dial(t, l, d).conn
						c := pagexfer.NewClient(conn, d)
						for pid := uint32(1); pid <= 3; pid++ {
							if got := fetch(t, c, pid, page.RangeOf(0x7fff_0000_0000, 1100<<page.Shift)); !bytes.Equal(got, want[pid]) {
								t.Errorf("pages of %d differ", pid)
							}
							if got := fetch(t, c, pid, page.RangeOf(0x13000, page.Size)); !bytes.Equal(got, content(uint64(pid), 0x13000, 1)) {
								t.Errorf("a page of %d differs", pid)
							}
						}
						if err := c.Close(); err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
			}
		})
	}
}

// A request that reaches over the end of what there is gets what there is.
func TestServeShortReply(t *testing.T) {
	l := serve(t, setIn(t, made(t, 1, 1)), Options{})
	c := pagexfer.NewClient(dial(t, l, pagexfer.V41).conn, pagexfer.V41)
	if err := c.Request(pagexfer.Request{PID: 1, Addr: 0x18000, Pages: 100}); err != nil {
		t.Fatal(err)
	}
	room := make([]byte, 100<<page.Shift)
	if _, n, err := c.Receive(room); err != nil || n != 2 || !bytes.Equal(room[:2<<page.Shift], content(1, 0x18000, 2)) {
		t.Errorf("%d pages, %v", n, err)
	}
}

// Who asks for what is not there loses the connection; the others do not.
func TestServeRefuses(t *testing.T) {
	dir := made(t, 1, 1)
	for name, set := range map[string]*pageset.Set{"files": setIn(t, dir), "image": inImage(t, dir)} {
		l := serve(t, set, Options{})
		good := pagexfer.NewClient(dial(t, l, pagexfer.V41).conn, pagexfer.V41)
		for what, h := range map[string]pagexfer.Header{
			"unknown pid":  {Command: pagexfer.Get, Pages: 1, Addr: 0x10000, ID: 2},
			"huge pid":     {Command: pagexfer.Get, Pages: 1, Addr: 0x10000, ID: 1<<31 - 1},
			"unknown page": {Command: pagexfer.Get, Pages: 1, Addr: 0x1a000, ID: 1},
			"no pages":     {Command: pagexfer.Get, Addr: 0x10000, ID: 1},
			"a dump":       {Command: pagexfer.Open2, ID: pagexfer.ImageID(pagexfer.Process, 1)},
			"no command":   {Command: 77},
			"pages":        {Command: pagexfer.AddF, Flags: lazy, Pages: 1, Addr: 0x10000, ID: 0x101},
		} {
			t.Run(name+" "+what, func(t *testing.T) {
				c := dial(t, l, pagexfer.V42)
				c.send(pagexfer.Header{Command: pagexfer.Get, Pages: 1, Addr: 0x10000, ID: 1})
				c.reply(pagexfer.V42.HeaderSize() + page.Size)
				c.send(h)
				c.dropped()
				if got := fetch(t, good, 1, page.RangeOf(0x10000, page.Size)); !bytes.Equal(got, content(1, 0x10000, 1)) {
					t.Error("another client suffers")
				}
			})
		}
	}
}

// A client that asks and does not read holds nobody else up.
func TestServeStalledClient(t *testing.T) {
	l := serve(t, setIn(t, made(t, 1, 1500)), Options{})
	stalled := dial(t, l, pagexfer.V41)
	for range 64 {
		stalled.send(pagexfer.Header{Command: pagexfer.Get, Pages: 1000, Addr: 0x7fff_0000_0000, ID: 1})
	}
	c := pagexfer.NewClient(dial(t, l, pagexfer.V41).conn, pagexfer.V41)
	if got := fetch(t, c, 1, page.RangeOf(0x10000, page.Size)); !bytes.Equal(got, content(1, 0x10000, 1)) {
		t.Error("no answer beside a stalled client")
	}
}

// With as many clients as there may be, one that has said nothing gives way to
// another, and one that has said something does not.
func TestServeTooManyClients(t *testing.T) {
	l := serve(t, setIn(t, made(t, 1, 1)), Options{MaxClients: 2})
	busy := pagexfer.NewClient(dial(t, l, pagexfer.V41).conn, pagexfer.V41)
	ask := func(c *pagexfer.Client) bool {
		return bytes.Equal(fetch(t, c, 1, page.RangeOf(0x10000, page.Size)), content(1, 0x10000, 1))
	}
	ask(busy)
	silent := dial(t, l, pagexfer.V41)
	second := pagexfer.NewClient(dial(t, l, pagexfer.V41).conn, pagexfer.V41)
	if !ask(second) || !ask(busy) {
		t.Error("a silent client holds others up")
	}
	silent.dropped()
	third := dial(t, l, pagexfer.V41)
	if _, err := io.ReadFull(third.conn, make([]byte, 1)); err == nil {
		t.Error("a third client is served")
	}
	if !ask(second) || !ask(busy) {
		t.Error("clients that were there are not served any more")
	}
}

// What clients do wrong is logged, but not without bound.
func TestServeLogIsBounded(t *testing.T) {
	const clients = 500
	s := setIn(t, made(t, 1, 1))
	defer s.Close()
	var log bytes.Buffer
	l := listen(t)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	begin := time.Now()
	go func() { done <- Serve(ctx, l, s, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}) }()
	for range clients {
		c := dial(t, l, pagexfer.V41)
		if _, err := c.conn.Write(bytes.Repeat([]byte{0xff}, 64)); err != nil {
			t.Fatal(err)
		}
		c.dropped()
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	most := peerlog.LinesPerSecond * (1 + int(time.Since(begin)/time.Second))
	if n := strings.Count(log.String(), "client dropped"); n == 0 || n > most {
		t.Errorf("%d lines about %d clients, want 1 to %d", n, clients, most)
	}
}

// However many files there are to read, few are open.
func TestServeBoundedDescriptors(t *testing.T) {
	const tasks = 150
	l := serve(t, setIn(t, made(t, tasks, 1)), Options{})
	c := pagexfer.NewClient(dial(t, l, pagexfer.V41).conn, pagexfer.V41)
	before := descriptors(t)
	for pid := range uint32(tasks) {
		if got := fetch(t, c, pid+1, page.RangeOf(0x10000, page.Size)); !bytes.Equal(got, content(uint64(pid+1), 0x10000, 1)) {
			t.Fatalf("a page of %d differs", pid+1)
		}
	}
	if n := descriptors(t) - before; n > 80 {
		t.Errorf("%d more descriptors are open", n)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// A damaged frame is never sent: the connection ends before its pages.
func TestServeDamagedImage(t *testing.T) {
	d, err := imgfile.Open(made(t, 1, 1))
	if err != nil {
		t.Fatal(err)
	}
	mem := new(imagetest.Mem)
	w, err := image.NewWriter(mem, image.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := convert.Import(context.Background(), d, w); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Finish(context.Background(), image.Manifest{}); err != nil {
		t.Fatal(err)
	}
	frames := bytes.Clone(mem.Get("pages.raw"))
	frames[100] ^= 1
	mem.Set("pages.raw", frames)
	im, err := image.Open(context.Background(), mem, image.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	set, err := pageset.OfImage(context.Background(), im)
	if err != nil {
		t.Fatal(err)
	}
	l := serve(t, set, Options{})
	c := dial(t, l, pagexfer.V41)
	c.send(pagexfer.Header{Command: pagexfer.Get, Pages: 1, Addr: 0x10000, ID: 1})
	c.dropped()
}
