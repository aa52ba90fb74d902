package pageserver

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// socketPair is a connection of a server as it is made, and its peer.
func socketPair(t *testing.T, s *Server) (c *conn, peer net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if peer, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	nc, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		peer.Close()
		nc.Close()
	})
	return newConn(s, nc), peer
}

// unsent is how much the connection's socket holds that is not on its way.
func unsent(t *testing.T, c *conn) (n int) {
	t.Helper()
	var err error
	cerr := c.raw.Control(func(fd uintptr) { n, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT) })
	if err = errors.Join(cerr, err); err != nil {
		t.Fatal(err)
	}
	return n
}

// Who looks for the next request gets it whenever it comes, the end of the
// connection, and its deadline; and afterwards nobody looks.
func TestLookout(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Log("with one processor nobody looks, and reads do the same")
	}
	s := newSite(t, ServerOptions{})
	c, peer := socketPair(t, s.Server)
	answered := time.Now().Add(time.Hour) // it is looked for what is there
	p := make([]byte, 100)
	read := func(want string, wantErr error) {
		t.Helper()
		c.lookout = lookout{answered: answered, near: true}
		if n, err := c.Read(p); string(p[:n]) != want || !errors.Is(err, wantErr) {
			t.Errorf("read %q, %v; want %q, %v", p[:n], err, want, wantErr)
		}
		if n := s.looking.Load(); n != 0 {
			t.Errorf("%d look on", n)
		}
	}
	say := func(what string) {
		t.Helper()
		if _, err := peer.Write([]byte(what)); err != nil {
			t.Fatal(err)
		}
	}
	say("at once")
	read("at once", nil)
	if !c.lookout.near {
		t.Error("a request that was there is not near")
	}
	answered = time.Now().Add(-time.Hour) // and nobody looks for long
	go func() { _, _ = peer.Write([]byte("late")) }()
	read("late", nil)
	if c.lookout.near {
		t.Error("a request that came late is near")
	}
	s.turns.take(new(waiters))
	say("beside background")
	read("beside background", nil)
	s.turns.give()
	if err := c.nc.SetReadDeadline(time.Now().Add(10 * lookTime)); err != nil {
		t.Fatal(err)
	}
	read("", os.ErrDeadlineExceeded)
	if err := c.nc.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	peer.Close()
	read("", io.EOF)
	c.nc.Close()
	read("", net.ErrClosed)
}

// Nobody looks while background is sent, nor more than leave a processor to
// others.
func TestMayLook(t *testing.T) {
	s := newSite(t, ServerOptions{})
	s.turns.take(new(waiters))
	if s.mayLook() {
		t.Error("looks while background is sent")
	}
	s.turns.give()
	n := 0
	for n < 1000 && s.mayLook() {
		n++
	}
	if want := min(runtime.NumCPU(), runtime.GOMAXPROCS(0)) - 1; n != want {
		t.Errorf("%d look on %d processors", n, want+1)
	}
	s.looking.Store(0)
}

// A client that reads one range after another is expected to go on, and its
// socket kept short.
func TestLookoutExpects(t *testing.T) {
	s := newSite(t, ServerOptions{})
	c, peer := socketPair(t, s.Server)
	c.client = new(client)
	h, err := s.catalog.acquire("one", nil)
	if err != nil {
		t.Fatal(err)
	}
	c.images[1] = &opened{held: h, users: 1}
	d := wire.NewDecoder(peer, wire.Client, 512)
	if got := unsent(t, c); got != unsentBackground {
		t.Errorf("the socket holds %d bytes while there is no demand, want %d", got, unsentBackground)
	}
	begin := time.Now()
	for i := 0; i < 3 || !c.lookout.near; i++ {
		if time.Since(begin) > 20*time.Second {
			t.Fatal("requests come one after the other, and the next one is not expected to be near")
		}
		r := wire.Read{Image: 1, Length: 1000, Offset: int64(i), Object: "pages.lz4"}
		if _, err := peer.Write(r.Append(nil, uint32(i+1), 0)); err != nil {
			t.Fatal(err)
		}
		if err := c.next(); err != nil {
			t.Fatal(err)
		}
		if m, err := d.Next(); err != nil || m.Type != wire.TypeData {
			t.Fatalf("%v: %v", m.Type, err)
		}
		if c.lookout.answered.IsZero() {
			t.Error("a demand read is answered, and nothing expected")
		}
	}
	if got := unsent(t, c); got != unsentMax {
		t.Errorf("the socket holds %d bytes before a demand read, want %d", got, unsentMax)
	}
	c.leaveImage(c.images[1])
}
