package client

import (
	"bytes"
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

// pair is a connection as Dial makes it, and its other end.
func pair(t *testing.T) (c Conn, peer net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	addr := l.Addr().(*net.TCPAddr)
	c, err = Dial(t.Context(), Server{Network: "tcp", Host: "127.0.0.1", Port: uint16(addr.Port)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if peer, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = peer.Close() })
	return c, peer
}

// isReadable reports whether who waits for in would be woken.
func isReadable(t *testing.T, in *intake, wait int) bool {
	t.Helper()
	n := 0
	err := in.raw.Control(func(fd uintptr) {
		n, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, wait)
	})
	if err != nil {
		t.Fatal(err)
	}
	return n > 0
}

// The reader is not woken before what it expects is there, and then gets all of it.
func TestIntakeExpects(t *testing.T) {
	c, peer := pair(t)
	in := newIntake(c)
	if in.raw == nil {
		t.Fatal("a socket of Dial is not read without the scheduler")
	}
	send := func(n int) {
		if _, err := peer.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
	}
	in.expect(10000)
	send(9999)
	if isReadable(t, in, 50) {
		t.Error("woken for less than is expected")
	}
	send(1)
	if !isReadable(t, in, 5000) {
		t.Error("not woken for what is expected")
	}
	got := 0
	for got < 10000 {
		n, err := in.Read(make([]byte, 1<<16))
		if err != nil {
			t.Fatal(err)
		}
		got += n
	}
	in.expect(1)
	send(1)
	if n, err := in.Read(make([]byte, 10)); n != 1 || err != nil {
		t.Errorf("Read = %d, %v; want the one byte", n, err)
	}
	_ = peer.Close()
	if n, err := in.Read(make([]byte, 10)); n != 0 || err != io.EOF { //nolint:errorlint // readers compare
		t.Errorf("Read = %d, %v; want EOF", n, err)
	}
}

// Close ends a Read that is under way.
func TestIntakeClosed(t *testing.T) {
	c, _ := pair(t)
	in := newIntake(c)
	ended := make(chan error)
	go func() {
		_, err := in.Read(make([]byte, 10))
		ended <- err
	}()
	_ = c.Close()
	if err := <-ended; err == nil {
		t.Error("a Read of what is closed found something")
	}
}

// plain is a connection of which nothing is known.
type plain struct {
	Conn
	r io.Reader
}

func (p plain) Read(b []byte) (int, error) { return p.r.Read(b) }

// What may block, or is no socket, is read as it says.
func TestIntakeOthers(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	_ = r.Fd() // it blocks from here on
	for name, c := range map[string]Conn{"blocking": r, "unknown": plain{r: bytes.NewReader(nil)}} {
		in := newIntake(c)
		if in.raw != nil {
			t.Errorf("%s: it is read without the scheduler", name)
		}
		in.expect(10)
	}
	if _, err := newIntake(plain{r: bytes.NewReader(nil)}).Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("Read = %v; want EOF", err)
	}
}

// A payload of the background is all read, in whatever pieces it comes and
// although its end is less than the reader is woken for else, and what is behind it too.
func TestFillInPieces(t *testing.T) {
	c, peer := pair(t)
	l := &lane{client: &Client{opts: Options{Timeout: DefaultTimeout}}, background: true}
	k := newConn(l, nil, c)
	payload := make([]byte, gulp+gulp/2+7)
	for i := range payload {
		payload[i] = byte(i * 7)
	}
	sent := make(chan error, 1)
	go func() {
		b := wire.AppendData(nil, 2, wire.FlagLast, wire.Data{Size: int64(len(payload)), Length: len(payload)})
		b = append(b, payload...)
		for step := 1; len(b) > 0; step += step/2 + 1 {
			n := min(step, len(b))
			if step = n; n == len(b) { // the end comes when all else has been read
				waitRead(k.in)
			}
			if _, err := peer.Write(b[:n]); err != nil {
				sent <- err
				return
			}
			b = b[n:]
		}
		sent <- nil
	}()
	if _, err := k.dec.Next(); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(payload))
	r := &request{}
	if err := k.fill(r, got); err != nil || r.n != len(got) || !bytes.Equal(got, payload) {
		t.Fatalf("filled %d of %d bytes: %v", r.n, len(got), err)
	}
	// Not before: it might wake a reader that waits for more than is to come.
	err := <-sent
	if err == nil {
		_, err = peer.Write(wire.AppendDone(nil, 3))
	}
	if err != nil {
		t.Fatal(err)
	}
	if m, err := k.dec.Next(); err != nil || m.Type != wire.TypeDone {
		t.Errorf("behind it: %v, %v; want DONE", m.Type, err)
	}
}

// A link that has turned slow is not a silent one: before its connection is given up
// what has come of it is read.
func TestSlowIsNotSilent(t *testing.T) {
	const first, second = 20 << 10, 100 << 10
	l := lonely(1)
	k, peer := joined(t, l, 0)
	k.gulp = gulp
	r := newLent("pages.lz4", 0, gulp, &buffers{})
	l.send(r)
	go k.read()
	dec := wire.NewDecoder(peer, wire.Server, 512)
	hello := wire.ServerHello{Version: wire.Version, Limits: wire.Limits{Read: wire.MinRead, Requests: wire.MinRequests, Images: wire.MinImages}}
	if _, err := peer.Write(hello.Append(nil)); err != nil {
		t.Fatal(err)
	}
	m, err := dec.Next()
	if err != nil {
		t.Fatal(err)
	}
	head := wire.AppendData(nil, m.ID, wire.FlagLast, wire.Data{Size: gulp, Length: gulp})
	if _, err := peer.Write(append(head, make([]byte, first)...)); err != nil {
		t.Fatal(err)
	}
	waitRead(k.in)
	if _, err := peer.Write(make([]byte, second)); err != nil {
		t.Fatal(err)
	}
	waitRead(k.in) // in vain
	then := time.Now().Add(-l.client.opts.Timeout * 3 / 4).UnixNano()
	k.heard.Store(then)
	l.watch()
	for deadline := time.Now().Add(10 * time.Second); k.heard.Load() == then; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("nothing is read of what has come")
		}
	}
	if _, err := peer.Write(make([]byte, gulp-first-second)); err != nil {
		t.Fatal(err)
	}
	if err := l.wait(t.Context(), r); err != nil {
		t.Error(err)
	}
	k.close(ErrClosed)
	<-k.gone
}

// waitRead waits until all has been read of what has come, or the reader sleeps
// over a part of it, for more that is to come.
func waitRead(in *intake) {
	deadline := time.Now().Add(100 * time.Millisecond)
	for left := 1; left > 0 && time.Now().Before(deadline); runtime.Gosched() {
		if err := in.raw.Control(func(fd uintptr) { left, _ = unix.IoctlGetInt(int(fd), unix.SIOCINQ) }); err != nil {
			return
		}
	}
}
