package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// answer is a server that takes READs up to longest bytes, and answers those for
// content in pieces. It gives their lengths until it has answered for all of content.
func answer(peer net.Conn, longest uint32, content []byte) (lengths []int, err error) {
	return answerUntil(peer, longest, content, func(int) error { return nil })
}

// answerUntil is answer that ends when asked, which is called with the number of
// the READs that have come, has an error.
func answerUntil(peer net.Conn, longest uint32, content []byte, asked func(reads int) error) (lengths []int, err error) {
	hello := wire.ServerHello{Version: wire.Version, Limits: wire.Limits{Read: longest, Requests: wire.MinRequests, Images: wire.MinImages}}
	if _, err := peer.Write(hello.Append(nil)); err != nil {
		return nil, err
	}
	dec := wire.NewDecoder(peer, wire.Server, 512)
	for off := 0; off < len(content); {
		m, err := dec.Next()
		if err != nil {
			return lengths, err
		}
		r, err := wire.ParseRead(m.Body)
		if err != nil {
			return lengths, err
		}
		lengths = append(lengths, int(r.Length))
		if err := asked(len(lengths)); err != nil {
			return lengths, err
		}
		off = int(r.Offset)
		for end := off + int(r.Length); off < end; {
			n := min(end-off, wire.MaxData)
			flags := uint8(0)
			if off+n == end {
				flags = wire.FlagLast
			}
			b := wire.AppendData(nil, m.ID, flags, wire.Data{Offset: int64(off), Size: int64(len(content)), Length: n})
			if _, err := peer.Write(append(b, content[off:off+n]...)); err != nil {
				return lengths, err
			}
			off += n
		}
	}
	return lengths, nil
}

// What is longer than a READ may be is asked for by several, the first of which
// may be sent before the server has said how long that is.
func TestLongRequest(t *testing.T) {
	const longest = 2 * wire.MinRead
	content := make([]byte, wire.MinRead+2*longest+7)
	for i := range content {
		content[i] = byte(i * 7)
	}
	l := lonely(1)
	k, peer := joined(t, l, 0)
	r := newLent("pages.lz4", 0, len(content), &buffers{})
	l.send(r)
	var lengths []int
	said := make(chan error, 1)
	go func() {
		var err error
		lengths, err = answer(peer, longest, content)
		said <- err
	}()
	go k.read()
	if err := l.wait(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if err := <-said; err != nil {
		t.Fatal(err)
	}
	if want := []int{wire.MinRead, longest, longest, 7}; !slices.Equal(lengths, want) {
		t.Errorf("READs of %d bytes; want %d", lengths, want)
	}
	if !bytes.Equal(r.p, content) {
		t.Error("other bytes")
	}
	k.close(ErrClosed)
	<-k.gone
}

// lonely is a background lane of a client that is asked for nothing else.
func lonely(servers int) *lane {
	ss := newServers(make([]Server, servers))
	return newLane(&Client{opts: Options{Timeout: DefaultTimeout, Logger: slog.New(slog.DiscardHandler)}, servers: ss}, image.Background)
}

// joined is a connection of l to its server i, which has the image open, and its other end.
func joined(t *testing.T, l *lane, i int) (*conn, net.Conn) {
	t.Helper()
	c, peer := pair(t)
	k := newConn(l, l.client.servers.list[i], c)
	k.opened = true
	l.mu.Lock()
	l.conn = k
	l.mu.Unlock()
	return k, peer
}

// part answers one READ for content, and reads the next.
func part(peer net.Conn, content []byte) error {
	done := errors.New("the next READ")
	_, err := answerUntil(peer, wire.MinRead, content, func(asked int) error {
		if asked > 1 {
			return done
		}
		return nil
	})
	if !errors.Is(err, done) {
		return fmt.Errorf("it ended before: %w", err)
	}
	return nil
}

// A connection that brought a part before it broke has done some of the work: a
// request that each brings forward is not given up.
func TestLongRequestOfShortConnections(t *testing.T) {
	content := make([]byte, 6*wire.MinRead)
	l := lonely(1)
	r := newLent("pages.lz4", 0, len(content), &buffers{})
	l.send(r)
	for i := range 5 {
		k, peer := joined(t, l, 0)
		ended := make(chan error, 1)
		go func() {
			err := part(peer, content)
			_ = peer.Close()
			ended <- err
		}()
		l.pump()
		k.read()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		if want := (i + 1) * wire.MinRead; r.n != want || r.lost != 0 || len(l.waiting) != 1 {
			t.Fatalf("connection %d: %d bytes, want %d; %d in vain, %d requests wait", i, r.n, want, r.lost, len(l.waiting))
		}
	}
}

// Of a range that two servers gave, a part is known to be of the one that gave it.
func TestOriginOfParts(t *testing.T) {
	content := make([]byte, 2*wire.MinRead)
	l := lonely(2)
	r := newLent("pages.lz4", 0, len(content), &buffers{})
	l.send(r)
	k, peer := joined(t, l, 0)
	go func() {
		_ = part(peer, content)
		_ = peer.Close()
	}()
	l.pump()
	k.read()
	k, other := joined(t, l, 1)
	go func() { _, _ = answer(other, wire.MinRead, content) }()
	l.pump()
	go k.read()
	if err := l.wait(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	k.close(ErrClosed)
	<-k.gone
	var rj rejected
	rj.note(r)
	for i, s := range l.client.servers.list {
		if got := rj.origin("pages.lz4", int64(i)*wire.MinRead, 1); got != s {
			t.Errorf("part %d is of another server than the one that gave it", i)
		}
	}
}

// Who gives a read up in the middle of what comes ends the connection, for the reader has his
// buffer. The server is not left for that, nor does it count against what others have asked for.
func TestGivenUpIsNoFailure(t *testing.T) {
	l := lonely(1)
	k, peer := joined(t, l, 0)
	given, other := newRequest("pages.lz4", 0, make([]byte, 1000)), newRequest("pages.lz4", 0, make([]byte, 1000))
	l.send(given, other)
	go k.read()
	hello := wire.ServerHello{Version: wire.Version, Limits: wire.Limits{Read: wire.MinRead, Requests: wire.MinRequests, Images: wire.MinImages}}
	half := wire.AppendData(hello.Append(nil), given.id, wire.FlagLast, wire.Data{Size: 1000, Length: 1000})
	if _, err := peer.Write(append(half, make([]byte, 500)...)); err != nil {
		t.Fatal(err)
	}
	for filling := false; !filling; runtime.Gosched() {
		l.mu.Lock()
		filling = k.filling == given
		l.mu.Unlock()
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.wait(ctx, given); !errors.Is(err, context.Canceled) {
		t.Errorf("wait: %v", err)
	}
	if s := l.client.servers.list[0]; s.failures != 0 || !s.next.IsZero() {
		t.Errorf("the server has failed %d times", s.failures)
	}
	if len(l.waiting) != 1 || l.waiting[0] != other || other.lost != 0 {
		t.Errorf("%d requests wait, the other one was lost %d times", len(l.waiting), other.lost)
	}
}
