package client

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// unread is an open connection of the background that nobody reads, with one block of
// size bytes asked for, and its other end.
func unread(t *testing.T, size int) (k *conn, b *block, peer net.Conn) {
	t.Helper()
	c, peer := pair(t)
	l := newLane(&Client{opts: Options{Timeout: DefaultTimeout}, servers: newServers([]Server{{}})}, 1)
	l.client.opts.Logger = slog.New(slog.DiscardHandler)
	k = newConn(l, l.client.servers.list[0], c)
	k.opened, k.proved, l.conn = true, true, k
	b = newBlock("pages.lz4", 0, size, &ahead{})
	l.mu.Lock()
	k.add(nil, b.req)
	l.mu.Unlock()
	k.giveHelm()
	k.heard.Store(time.Now().Add(-2 * DefaultTimeout).UnixNano())
	return k, b, peer
}

// say sends what a server says, and waits until it has come.
func say(t *testing.T, k *conn, peer net.Conn, b []byte) {
	t.Helper()
	if _, err := peer.Write(b); err != nil {
		t.Fatal(err)
	}
	if !isReadable(t, k.in, 5000) {
		t.Fatal("nothing has come")
	}
}

func payload(id uint32, n int) []byte {
	return append(wire.AppendData(nil, id, wire.FlagLast, wire.Data{Size: int64(n), Length: n}), make([]byte, n)...)
}

// A server is not taken for silent because nobody reads what it says.
func TestUnreadIsNotSilence(t *testing.T) {
	k, b, peer := unread(t, 1000)
	say(t, k, peer, payload(b.req.id, 1000))
	k.lane.watch()
	if k.why != nil || b.got != 1000 || !b.req.finished() {
		t.Errorf("after a look: %d bytes have come, the connection is closed because of %v", b.got, k.why)
	}
}

// One that is silent is left although nobody reads.
func TestSilenceIsFoundUnread(t *testing.T) {
	k, b, _ := unread(t, 1000)
	k.lane.watch()
	<-k.gone
	if !errors.Is(k.why, ErrSilent) || len(k.lane.waiting) != 1 || k.lane.waiting[0] != b.req {
		t.Errorf("the connection is closed because of %v, %d requests wait", k.why, len(k.lane.waiting))
	}
}

// Who waits reads, also what others wait for, and gives the helm back.
func TestWhoWaitsReads(t *testing.T) {
	k, b, peer := unread(t, 1000)
	mine, other := b.want(span{500, 700}, make([]byte, 200)), b.want(span{0, 100}, make([]byte, 100))
	say(t, k, peer, payload(b.req.id, 1000)[:900])
	if _, err := k.lane.await(t.Context(), b.req, mine.done); err != nil {
		t.Fatal(err)
	}
	if !closed(other.done) || len(k.helm) != 1 || closed(b.req.done) {
		t.Errorf("the other has come: %v; the helm is free: %d", closed(other.done), len(k.helm))
	}
}

// Who gives up while nothing comes ends the connection; all else goes on with the next.
func TestGivingUpTheHelm(t *testing.T) {
	k, b, peer := unread(t, 1000)
	mine := b.want(span{0, 1000}, make([]byte, 1000))
	say(t, k, peer, payload(b.req.id, 1000)[:900])
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := k.lane.await(ctx, b.req, mine.done); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("await = %v", err)
	}
	<-k.gone
	if !mine.withdraw() {
		t.Error("it is still received to")
	}
	if len(k.lane.waiting) != 1 || b.req.n != b.got || b.got == 0 {
		t.Errorf("%d requests wait, %d bytes of %d count", len(k.lane.waiting), b.req.n, b.got)
	}
}
