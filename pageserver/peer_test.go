package pageserver

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// content is n bytes that nothing else has.
func content(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// writeImage writes an image whose objects need not make sense.
func writeImage(t testing.TB, dir string, objects map[string][]byte) {
	t.Helper()
	m := &image.Manifest{
		Format: "lazyrestore-image", Version: 1, Codec: "lz4", ChunkSize: 64 << 10,
		Machine:   image.Machine{PageSize: page.Size},
		IndexRoot: hex.EncodeToString(make([]byte, sha256.Size)),
		Objects:   map[string]image.Object{},
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"pages.idx", "pages.lz4"} {
		if objects[name] == nil {
			objects[name] = []byte(name)
		}
	}
	for name, b := range objects {
		sum := sha256.Sum256(b)
		m.Objects[name] = image.Object{Size: int64(len(b)), SHA256: hex.EncodeToString(sum[:])}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b, err := image.AppendManifest(nil, m)
	if err != nil {
		t.Fatal(err)
	}
	objects["manifest.json"] = b
	if err := os.WriteFile(filepath.Join(dir, "manifest.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A site is a server of one test, with a directory of images.
type site struct {
	*Server
	dir     string
	objects map[string][]byte // of its image "one"
}

func newSite(t testing.TB, opts ServerOptions) *site {
	t.Helper()
	s := &site{dir: t.TempDir(), objects: map[string][]byte{
		"pages.lz4": content(1, 5<<20+17), "process.bin": content(2, 100_000), "eager.raw": {},
	}}
	writeImage(t, filepath.Join(s.dir, "one"), s.objects)
	catalog, err := NewCatalog(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	s.Server = NewServer(catalog, opts)
	return s
}

// listen serves on a listener, until the test ends.
func (s *site) listen(t testing.TB, ln net.Listener) net.Addr {
	t.Helper()
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	t.Cleanup(func() {
		ctx, cancel := timeout(10 * time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-served; !errors.Is(err, ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
		if st := s.Stats(); st.Connections != 0 || st.Clients != 0 || st.Held != 0 || s.catalog.files != 0 {
			t.Errorf("left behind: %+v, %d files", st, s.catalog.files)
		}
	})
	return ln.Addr()
}

func (s *site) listenTCP(t testing.TB) net.Addr {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return s.listen(t, ln)
}

// A peer speaks the protocol, message by message.
type peer struct {
	t  testing.TB
	nc net.Conn
	d  *wire.Decoder
	id uint32
}

func dial(t testing.TB, addr net.Addr) *peer {
	t.Helper()
	nc, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	return newPeer(t, nc)
}

func newPeer(t testing.TB, nc net.Conn) *peer {
	t.Cleanup(func() { nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
	return &peer{t: t, nc: nc, d: wire.NewDecoder(nc, wire.Client, 64<<10)}
}

func (p *peer) write(b []byte) {
	p.t.Helper()
	if _, err := p.nc.Write(b); err != nil {
		p.t.Fatal(err)
	}
}

func (p *peer) next() wire.Message {
	p.t.Helper()
	m, err := p.d.Next()
	if err != nil {
		p.t.Fatalf("next message: %v", err)
	}
	return m
}

// greet exchanges HELLO.
func (p *peer) greet(client byte) wire.ServerHello {
	p.t.Helper()
	p.write(wire.ClientHello{Version: wire.Version, Client: [16]byte{client}}.Append(nil))
	h, err := wire.ParseServerHello(p.next().Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return h
}

// open opens an image.
func (p *peer) open(number uint32, name string) (*wire.Opened, error) {
	p.t.Helper()
	p.id++
	p.write(wire.Open{Image: number, Name: name}.Append(nil, p.id))
	m := p.next()
	if err := p.failed(m); err != nil {
		return nil, err
	}
	o, err := wire.ParseOpened(m.Body)
	if err != nil || m.Type != wire.TypeOpened || m.ID != p.id || o.Image != number {
		p.t.Fatalf("%+v, %v", m, err)
	}
	return o, nil
}

// mustOpen opens image "one" as 1.
func (p *peer) mustOpen() *peer {
	p.t.Helper()
	if _, err := p.open(1, "one"); err != nil {
		p.t.Fatal(err)
	}
	return p
}

// failed is the error that a message is.
func (p *peer) failed(m wire.Message) error {
	p.t.Helper()
	if m.Type != wire.TypeError {
		return nil
	}
	e, err := wire.ParseError(m.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return e
}

// ask sends a READ.
func (p *peer) ask(r wire.Read, flags uint8) (id uint32) {
	p.t.Helper()
	p.id++
	p.write(r.Append(nil, p.id, flags))
	return p.id
}

// read reads a range of image 1, and nothing else comes meanwhile.
func (p *peer) read(object string, off int64, n int, flags uint8) ([]byte, error) {
	p.t.Helper()
	id := p.ask(wire.Read{Image: 1, Length: uint32(n), Offset: off, Object: object}, flags)
	return p.collect(id)
}

// collect takes the reply to one READ.
func (p *peer) collect(id uint32) ([]byte, error) {
	p.t.Helper()
	var b []byte
	for at := int64(-1); ; {
		m := p.next()
		if m.ID != id {
			p.t.Fatalf("%v of request %d, not %d", m.Type, m.ID, id)
		}
		if err := p.failed(m); err != nil {
			return nil, err
		}
		if m.Type != wire.TypeData || at >= 0 && m.Data.Offset != at {
			p.t.Fatalf("%+v, not DATA at %d", m, at)
		}
		at = m.Data.Offset + int64(m.Data.Length)
		part := make([]byte, m.Data.Length)
		if err := p.d.ReadPayload(part); err != nil {
			p.t.Fatal(err)
		}
		if b = append(b, part...); m.Flags&wire.FlagLast != 0 {
			return b, nil
		}
	}
}

// wants is the code of an error.
func wants(t testing.TB, what string, err error, code wire.Code) {
	t.Helper()
	var e *wire.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Errorf("%s: %v, want %v", what, err, code)
	}
}

// ended is that the server has closed the connection.
func (p *peer) ended() {
	p.t.Helper()
	if m, err := p.d.Next(); !errors.Is(err, io.EOF) {
		p.t.Errorf("%+v, %v, want the end of the connection", m, err)
	}
}

// same compares what was read.
func same(t testing.TB, what string, got []byte, err error, want []byte) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%s: %s", what, fmt.Sprintf("%d bytes differ from the %d wanted", len(got), len(want)))
	}
}
