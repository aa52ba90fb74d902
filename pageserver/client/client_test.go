package client_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/store/storetest"
	"github.com/lazyrestore/lazyrestore/pageserver"
	"github.com/lazyrestore/lazyrestore/pageserver/client"
)

// noLeaks has the test fail if a goroutine of it outlives it.
func noLeaks(t *testing.T) {
	t.Helper()
	current := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, current) })
}

// testLog is what a peer says, in the test's own log.
func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
}

// A running is a page server at work. It can be stopped and started anew, at
// the same address.
type running struct {
	root   string
	addr   string
	server *pageserver.Server
	served chan error
}

// serve starts a server of the images in root, at an address of the loopback interface
// that these tests alone have: while it is stopped its port is given to nobody.
func serve(t testing.TB, root string) *running {
	t.Helper()
	r := &running{root: root, addr: "127.131.0.1:0"}
	r.start(t)
	t.Cleanup(r.stop)
	return r
}

func (r *running) start(t testing.TB) {
	t.Helper()
	catalog, err := pageserver.NewCatalog(r.root)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	r.addr = ln.Addr().String()
	r.server = pageserver.NewServer(catalog, pageserver.ServerOptions{})
	r.served = make(chan error, 1)
	go func(s *pageserver.Server) { r.served <- s.Serve(ln) }(r.server)
}

// stop cuts all connections, as the end of the process does.
func (r *running) stop() {
	if r.server == nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = r.server.Shutdown(ctx)
	<-r.served
	r.server = nil
}

// at is the server in an address.
func at(addr string) client.Server {
	host, port, _ := net.SplitHostPort(addr)
	n, _ := strconv.Atoi(port)
	return client.Server{Network: "tcp", Host: host, Port: uint16(n)}
}

// address is an image on servers.
func address(name string, addrs ...string) client.Address {
	a := client.Address{Image: name}
	for _, s := range addrs {
		a.Servers = append(a.Servers, at(s))
	}
	return a
}

// put writes objects as an image named name, whose objects need not make
// sense; it adds those that every image has.
func put(t testing.TB, root, name string, objects map[string][]byte) {
	t.Helper()
	m := &image.Manifest{
		Format: "lazyrestore-image", Version: 1, Codec: "lz4", ChunkSize: 64 << 10,
		Machine:   image.Machine{PageSize: page.Size},
		IndexRoot: hex.EncodeToString(make([]byte, sha256.Size)),
		Objects:   map[string]image.Object{},
	}
	dir := filepath.Join(root, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	delete(objects, image.ManifestObject)
	for _, object := range []string{"pages.idx", "pages.lz4"} {
		if objects[object] == nil {
			objects[object] = []byte(object)
		}
	}
	for object, b := range objects {
		sum := sha256.Sum256(b)
		m.Objects[object] = image.Object{Size: int64(len(b)), SHA256: hex.EncodeToString(sum[:])}
	}
	var err error
	if objects[image.ManifestObject], err = image.AppendManifest(nil, m); err != nil {
		t.Fatal(err)
	}
	for object, b := range objects {
		if err := os.WriteFile(filepath.Join(dir, object), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func open(t testing.TB, addr client.Address, opts client.Options) *client.Client {
	t.Helper()
	if opts.Logger == nil {
		opts.Logger = testLog(t)
	}
	c, err := client.Open(t.Context(), addr, opts)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A client is a source like any other.
func TestConformance(t *testing.T) {
	noLeaks(t)
	for _, whole := range []bool{false, true} {
		t.Run("whole="+strconv.FormatBool(whole), func(t *testing.T) {
			storetest.Run(t, func(t *testing.T, objects storetest.Objects) image.Source {
				root := t.TempDir()
				put(t, root, "img", objects)
				return open(t, address("img", serve(t, root).addr), client.Options{Whole: whole})
			})
		})
	}
}

// No server, no image, another image: the error names each server.
func TestUnavailable(t *testing.T) {
	noLeaks(t)
	root, other := t.TempDir(), t.TempDir()
	objects := storetest.Objects{}
	put(t, root, "img", objects)
	put(t, other, "else", objects)
	gone, without, with := serve(t, root), serve(t, other), serve(t, root)
	gone.stop()
	_, err := client.Open(t.Context(), address("img", gone.addr, without.addr), client.Options{})
	var un *client.UnavailableError
	if !errors.As(err, &un) || len(un.Servers) != 2 {
		t.Fatalf("Open: %v", err)
	}
	if !errors.Is(un.Servers[1].Err, client.ErrNoImage) || !errors.Is(err, client.ErrNoImage) {
		t.Errorf("the server without the image: %v", un.Servers[1].Err)
	}
	t.Log(err)
	c := open(t, address("img", gone.addr, without.addr, with.addr), client.Options{})
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	_, err = client.Open(t.Context(), address("img", with.addr), client.Options{Digest: "sha256:" + string(make64())})
	if !errors.Is(err, client.ErrOtherImage) {
		t.Errorf("Open with another digest: %v", err)
	}
}

func make64() []byte {
	b := make([]byte, 64)
	for i := range b {
		b[i] = 'a'
	}
	return b
}

func TestList(t *testing.T) {
	noLeaks(t)
	root := t.TempDir()
	var last storetest.Objects
	for i := range 3 {
		last = storetest.Objects{"pages.lz4": make([]byte, i+1)}
		put(t, root, "img"+strconv.Itoa(i), last)
	}
	s := serve(t, root)
	list, err := client.List(t.Context(), at(s.addr), client.Options{})
	if err != nil || len(list) != 3 || list[2].Name != "img2" || list[2].Size != int64(len(last["manifest.json"])+len("pages.idx")+3) {
		t.Errorf("List: %+v, %v", list, err)
	}
	s.stop()
	if _, err := client.List(t.Context(), at(s.addr), client.Options{Timeout: time.Second}); err == nil {
		t.Error("List of a server that is gone gives no error")
	}
}

func TestUnixSocket(t *testing.T) {
	noLeaks(t)
	root := t.TempDir()
	put(t, root, "img", storetest.Objects{"a.bin": []byte("abc")})
	catalog, err := pageserver.NewCatalog(root)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := pageserver.NewServer(catalog, pageserver.ServerOptions{})
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	addr, err := client.ParseAddress("unix://" + path + "/img")
	if err != nil {
		t.Fatal(err)
	}
	c := open(t, addr, client.Options{})
	p := make([]byte, 2)
	if err := c.ReadRange(t.Context(), "a.bin", p, 1, image.Demand); err != nil || string(p) != "bc" {
		t.Errorf("read %q, %v", p, err)
	}
	_ = c.Close()
	_ = server.Shutdown(t.Context())
	<-served
}
