package pageserver

import (
	"context"
	"crypto/sha256"
	"net"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func timeout(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}

// transports are the ways to a server.
func transports(t *testing.T) map[string]func(*testing.T, *site) (dial func(*testing.T) *peer) {
	listen := func(network, address string) func(*testing.T, *site) func(*testing.T) *peer {
		return func(t *testing.T, s *site) func(*testing.T) *peer {
			ln, err := net.Listen(network, address)
			if err != nil {
				t.Fatal(err)
			}
			addr := s.listen(t, ln)
			return func(t *testing.T) *peer { return dial(t, addr) }
		}
	}
	return map[string]func(*testing.T, *site) func(*testing.T) *peer{
		"tcp":  listen("tcp", "127.0.0.1:0"),
		"unix": listen("unix", filepath.Join(t.TempDir(), "socket")),
		// Not a socket, as TLS is none.
		"pipe": func(t *testing.T, s *site) func(*testing.T) *peer {
			ln := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
			s.listen(t, ln)
			return func(t *testing.T) *peer {
				ours, theirs := net.Pipe()
				ln.conns <- theirs
				return newPeer(t, ours)
			}
		},
	}
}

// A pipeListener accepts pipes.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	select {
	case <-l.closed:
	default:
		close(l.closed)
	}
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

func TestReads(t *testing.T) {
	for name, listen := range transports(t) {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, ServerOptions{})
			p := listen(t, s)(t)
			h := p.greet(1)
			if h.Limits.Read < wire.MinRead || h.IdleTime != 120_000 {
				t.Errorf("HELLO: %+v", h)
			}
			o, err := p.open(1, "one")
			if err != nil {
				t.Fatal(err)
			}
			if o.Digest != sha256.Sum256(s.objects["manifest.json"]) || len(o.Objects) != len(s.objects) {
				t.Errorf("OPENED: %+v", o)
			}
			for _, object := range o.Objects {
				want := s.objects[object.Name]
				if object.Size != int64(len(want)) {
					t.Errorf("%s: %d bytes, want %d", object.Name, object.Size, len(want))
				}
				size := len(want)
				for _, flags := range []uint8{0, wire.FlagBackground} {
					got, err := p.read(object.Name, 0, size, flags)
					same(t, object.Name, got, err, want)
					for _, r := range [][2]int{{0, 0}, {size, 0}, {size / 2, min(1, size)}, {size / 3, size / 3}, {size / 3, min(copyMax, size/3)}} {
						got, err := p.read(object.Name, int64(r[0]), r[1], flags)
						same(t, object.Name, got, err, want[r[0]:r[0]+min(r[1], size-r[0])])
					}
					// What a client asks for that knows no sizes.
					got, err = p.read(object.Name, 0, 8<<20, flags|wire.FlagShort)
					same(t, object.Name+" short", got, err, want)
					got, err = p.read(object.Name, 1<<50, 100, flags|wire.FlagShort)
					same(t, object.Name+" far behind the end", got, err, nil)
					got, err = p.read(object.Name, 1000, 400, flags|wire.FlagShort|wire.FlagFromEnd)
					from := max(0, size-1000)
					same(t, object.Name+" from its end", got, err, want[from:min(from+400, size)])
					got, err = p.read(object.Name, 1<<50, size, flags|wire.FlagFromEnd)
					same(t, object.Name+" from before its end", got, err, want)
				}
			}
		})
	}
}

// All of a restore's start goes out before anything has come back.
func TestNothingIsWaitedFor(t *testing.T) {
	s := newSite(t, ServerOptions{})
	p := dial(t, s.listenTCP(t))
	b := wire.ClientHello{Version: wire.Version}.Append(nil)
	b = wire.Open{Image: 9, Name: "one"}.Append(b, 1)
	for i, object := range []string{"manifest.json", "process.bin", "eager.raw", "pages.idx"} {
		b = wire.Read{Image: 9, Length: wire.MinRead, Object: object}.Append(b, uint32(i+2), wire.FlagShort)
	}
	p.write(b)
	bytes := 0
	for replies := 0; replies < 6; replies++ {
		m := p.next()
		if err := p.failed(m); err != nil {
			t.Fatal(err)
		}
		bytes += m.Data.Length
	}
	if want := len(s.objects["manifest.json"]) + len(s.objects["process.bin"]) + len(s.objects["pages.idx"]); bytes != want {
		t.Errorf("%d bytes, want %d", bytes, want)
	}
}

func TestErrors(t *testing.T) {
	s := newSite(t, ServerOptions{})
	p := dial(t, s.listenTCP(t))
	h := p.greet(1)
	for _, name := range []string{"two", "", ".", "..", "/", "one/", "../one", "/etc", "one\x00", ".one.tmp-123"} {
		_, err := p.open(1, name)
		wants(t, "open "+name, err, wire.CodeNoImage)
	}
	_, err := p.read("pages.lz4", 0, 1, 0)
	wants(t, "read of no image", err, wire.CodeNoImage)
	p.mustOpen()
	_, err = p.open(1, "one")
	wants(t, "the same number twice", err, wire.CodeLimit)
	for _, name := range []string{"", "nothing", "..", "../one/pages.lz4", "/etc/passwd", "pages.lz4\x00"} {
		_, err = p.read(name, 0, 1, 0)
		wants(t, "read of "+name, err, wire.CodeNoObject)
	}
	size := int64(len(s.objects["pages.lz4"]))
	for _, off := range []int64{size, size + 1, 1 << 62, 1<<63 - 1} {
		for _, flags := range []uint8{0, wire.FlagBackground} {
			_, err = p.read("pages.lz4", off, 1, flags)
			wants(t, "read behind the end", err, wire.CodeRange)
		}
	}
	_, err = p.read("pages.lz4", 10, 11, wire.FlagFromEnd)
	wants(t, "read over the end", err, wire.CodeRange)
	_, err = p.read("pages.lz4", 0, int(h.Limits.Read)+1, wire.FlagShort)
	wants(t, "long read", err, wire.CodeLimit)
	p.write(wire.AppendClose(nil, 77, 5))
	wants(t, "close of no image", p.failed(p.next()), wire.CodeNoImage)
	got, err := p.read("process.bin", 0, 100_000, 0)
	same(t, "after all that", got, err, s.objects["process.bin"])
}

func TestCloseAndOpenAgain(t *testing.T) {
	s := newSite(t, ServerOptions{})
	p := dial(t, s.listenTCP(t))
	p.greet(1)
	for range 3 {
		p.mustOpen()
		// In flight when the image is let go.
		id := p.ask(wire.Read{Image: 1, Length: 5 << 20, Object: "pages.lz4"}, wire.FlagBackground)
		p.write(wire.AppendClose(nil, 1000, 1))
		var got []byte
		for last, done := false, false; !last || !done; {
			m := p.next()
			switch {
			case m.ID == 1000 && m.Type == wire.TypeDone:
				done = true
			case m.ID == id && m.Type == wire.TypeData:
				part := make([]byte, m.Data.Length)
				if err := p.d.ReadPayload(part); err != nil {
					t.Fatal(err)
				}
				got = append(got, part...)
				last = m.Flags&wire.FlagLast != 0
			default:
				t.Fatalf("%+v", m)
			}
		}
		same(t, "pages", got, nil, s.objects["pages.lz4"][:5<<20])
		_, err := p.read("pages.lz4", 0, 1, 0)
		wants(t, "read of a closed image", err, wire.CodeNoImage)
	}
}
