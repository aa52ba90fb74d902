package client

import (
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// A stream reads on as far as the line holds, and no further: beyond that more at a
// time comes no sooner.
func TestWindow(t *testing.T) {
	for _, line := range []struct {
		name   string
		delay  time.Duration // there, and as much back
		rate   int           // bytes a second
		window int64
	}{
		{"beside", 50 * time.Microsecond, 600 << 20, nearWindow},
		{"busy", 50 * time.Microsecond, 20 << 20, nearWindow},
		{"a link of 1 Gbit/s", 500 * time.Microsecond, 118 << 20, nearWindow},
		{"far and slow", 40 * time.Millisecond, 10 << 20, nearWindow},
		{"far", 4 * time.Millisecond, 1 << 30, lastWindow},
		{"very far", 40 * time.Millisecond, 118 << 20, lastWindow},
	} {
		t.Run(line.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if got := windowAfter(t, 64<<20, line.delay, line.rate); got != line.window {
					t.Errorf("a window of %d KiB; want %d", got>>10, line.window>>10)
				}
			})
		})
	}
}

// windowAfter reads an object of size bytes over a line, and gives the window then.
func windowAfter(t *testing.T, size int64, delay time.Duration, rate int) int64 {
	const object = "pages.lz4"
	l := lonely(1)
	c := l.client
	c.lanes[image.Background], c.sizes = l, map[string]int64{object: size}
	ours, peer := net.Pipe()
	k := newConn(l, c.servers.list[0], ours)
	k.greeting(nil)
	k.opened, l.conn = true, k
	asked := make(chan asking, 1024)
	go hear(peer, asked, delay)
	go tell(peer, asked, delay, rate, size)
	go k.read()
	p := make([]byte, 64<<10)
	for off := int64(0); off < size; off += int64(len(p)) {
		if err := c.ahead.read(t.Context(), c, object, p, off); err != nil {
			t.Fatal(err)
		}
	}
	k.close(ErrClosed)
	<-k.gone
	c.ahead.mu.Lock()
	defer c.ahead.mu.Unlock()
	return c.ahead.streams[0].window
}

// An asking is a READ, and when it comes to the server.
type asking struct {
	id   uint32
	read wire.Read
	at   time.Time
}

// hear takes the READs of a client whose line has a delay.
func hear(peer net.Conn, asked chan<- asking, delay time.Duration) {
	defer close(asked)
	dec := wire.NewDecoder(peer, wire.Server, 512)
	for {
		m, err := dec.Next()
		if err != nil {
			return
		}
		if r, err := wire.ParseRead(m.Body); err == nil {
			asked <- asking{m.ID, r, time.Now().Add(delay)}
		}
	}
}

// tell answers them: nothing comes before its time, nor quicker than rate.
func tell(peer net.Conn, asked <-chan asking, delay time.Duration, rate int, size int64) {
	time.Sleep(2 * delay)
	hello := wire.ServerHello{Version: wire.Version, Limits: wire.Limits{Read: 8 << 20, Requests: wire.MinRequests, Images: wire.MinImages}}
	_, _ = peer.Write(hello.Append(nil))
	for a := range asked {
		time.Sleep(time.Until(a.at.Add(delay)))
		for n := int(a.read.Length); n > 0; {
			m := min(n, 64<<10)
			time.Sleep(time.Duration(m) * time.Second / time.Duration(rate))
			d := wire.Data{Offset: a.read.Offset + int64(int(a.read.Length)-n), Size: size, Length: m}
			flags := uint8(0)
			if n -= m; n == 0 {
				flags = wire.FlagLast
			}
			if _, err := peer.Write(append(wire.AppendData(nil, a.id, flags, d), make([]byte, m)...)); err != nil {
				return
			}
		}
	}
}
