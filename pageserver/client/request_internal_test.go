package client

import (
	"bytes"
	"log/slog"
	"net"
	"slices"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// answer is a server that takes READs up to longest bytes, and answers those for
// content in pieces. It gives their lengths until it has answered for all of content.
func answer(peer net.Conn, longest uint32, content []byte) (lengths []int, err error) {
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
	c, peer := pair(t)
	ss := newServers(make([]Server, 1))
	l := newLane(&Client{opts: Options{Timeout: DefaultTimeout, Logger: slog.New(slog.DiscardHandler)}, servers: ss}, image.Background)
	k := newConn(l, ss.list[0], c)
	k.opened = true
	l.conn = k
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
