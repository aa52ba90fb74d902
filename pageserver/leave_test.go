package pageserver

import (
	"context"
	"errors"
	"io"
	"runtime"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// receive reads messages until the connection ends, and puts the payload
// together by request.
func (p *peer) receive() (payload map[uint32][]byte, errs map[uint32]error, goaway bool) {
	p.t.Helper()
	payload, errs = make(map[uint32][]byte), make(map[uint32]error)
	for {
		m, err := p.d.Next()
		if errors.Is(err, io.EOF) {
			return payload, errs, goaway
		}
		if err != nil {
			p.t.Fatal(err)
		}
		switch m.Type {
		case wire.TypeGoaway:
			goaway = true
		case wire.TypeError:
			errs[m.ID] = p.failed(m)
		case wire.TypeData:
			b := make([]byte, m.Data.Length)
			if err := p.d.ReadPayload(b); err != nil {
				p.t.Fatal(err)
			}
			payload[m.ID] = append(payload[m.ID], b...)
		default:
			p.t.Fatalf("%+v", m)
		}
	}
}

// inFlight is how many requests of all connections are in flight.
func (s *site) inFlight() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open {
		c.mu.Lock()
		n += c.inFlight
		c.mu.Unlock()
	}
	return n
}

// allLeaving reports whether no connection takes requests any more.
func (s *site) allLeaving() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open {
		c.mu.Lock()
		takes := c.state < leaving
		c.mu.Unlock()
		if takes {
			return false
		}
	}
	return true
}

// until waits for something that the server does not tell.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for begin := time.Now(); !is(); runtime.Gosched() {
		if time.Since(begin) > 10*time.Second {
			t.Fatalf("%s: not after 10 s", what)
		}
	}
}

// What is in flight when the server is told to end is answered, all of it.
func TestShutdownFinishes(t *testing.T) {
	for _, name := range []string{"tcp", "unix"} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, ServerOptions{})
			dial := transports(t)[name](t, s)
			idle, busy := dial(t), dial(t)
			idle.greet(1)
			busy.greet(2)
			busy.mustOpen()
			const reads = 12 // more than sockets hold
			for i := range uint32(reads) {
				r := wire.Read{Image: 1, Length: 5 << 20, Object: "pages.lz4"}
				busy.write(r.Append(nil, 100+i, uint8(i%2)*wire.FlagBackground))
			}
			until(t, "requests are in flight", func() bool { return s.inFlight() >= reads-2 })
			down := make(chan error, 1)
			go func() {
				ctx, cancel := timeout(20 * time.Second)
				defer cancel()
				down <- s.Shutdown(ctx)
			}()
			if _, _, goaway := idle.receive(); !goaway {
				t.Error("an idle client was not told")
			}
			idle.nc.Close()
			until(t, "the busy client is being told", s.allLeaving)
			busy.write(wire.Read{Image: 1, Length: 1, Object: "pages.lz4"}.Append(nil, 200, 0))
			payload, errs, goaway := busy.receive()
			busy.nc.Close()
			if !goaway {
				t.Error("a busy client was not told")
			}
			wants(t, "a read after GOAWAY", errs[200], wire.CodeGoaway)
			for i := range uint32(reads) {
				same(t, "a read in flight", payload[100+i], errs[100+i], s.objects["pages.lz4"][:5<<20])
			}
			if err := <-down; err != nil {
				t.Errorf("shutdown: %v", err)
			}
		})
	}
}

// A client that takes nothing is cut when the time is over.
func TestShutdownCuts(t *testing.T) {
	s := newSite(t, ServerOptions{})
	addr := s.listenTCP(t)
	p := smallBuffers(t, addr)
	p.greet(1)
	p.mustOpen()
	p.ask(wire.Read{Image: 1, Length: 5 << 20, Object: "pages.lz4"}, 0)
	until(t, "the request is in flight", func() bool { return s.inFlight() == 1 })
	ctx, cancel := timeout(50 * time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want %v", err, context.DeadlineExceeded)
	}
}

func TestCancel(t *testing.T) {
	s := newSite(t, ServerOptions{})
	p := dial(t, s.listenTCP(t))
	p.greet(1)
	p.mustOpen()
	const reads = 12
	for i := range uint32(reads) {
		r := wire.Read{Image: 1, Length: 5 << 20, Object: "pages.lz4"}
		p.write(r.Append(nil, 100+i, wire.FlagBackground))
	}
	for i := range uint32(reads) {
		p.write(wire.AppendCancel(nil, 100+i))
		p.write(wire.AppendCancel(nil, 500+i)) // nobody's
	}
	p.write(wire.AppendPing(nil, 1000))
	cancelled, pinged := 0, false
	for open := reads; open > 0 || !pinged; {
		m := p.next()
		switch m.Type {
		case wire.TypeDone:
			pinged = true
		case wire.TypeError:
			wants(t, "a cancelled read", p.failed(m), wire.CodeCancelled)
			cancelled++
			open--
		default:
			if m.Flags&wire.FlagLast != 0 {
				open--
			}
		}
	}
	if cancelled < reads-3 { // some are on their way
		t.Errorf("%d of %d reads were cancelled", cancelled, reads)
	}
	got, err := p.read("process.bin", 0, 1000, 0)
	same(t, "after that", got, err, s.objects["process.bin"][:1000])
}

// However much a client asks for, the server reads no more requests than it
// granted, and answers all.
func TestRequestsInFlightAreBounded(t *testing.T) {
	const limit = wire.MinRequests
	s := newSite(t, ServerOptions{Limits: wire.Limits{Requests: limit}})
	p := dial(t, s.listenTCP(t))
	if h := p.greet(1); h.Limits.Requests != limit {
		t.Errorf("%+v", h)
	}
	p.mustOpen()
	const reads = 3 * limit
	for i := range uint32(reads) {
		r := wire.Read{Image: 1, Length: 5 << 20, Object: "pages.lz4"}
		p.write(r.Append(nil, 100+i, wire.FlagBackground))
	}
	most := 0
	for last := 0; last < reads; {
		most = max(most, s.inFlight())
		if m := p.next(); m.Flags&wire.FlagLast != 0 {
			last++
		} else if err := p.failed(m); err != nil {
			t.Fatal(err)
		}
	}
	if most != limit {
		t.Errorf("up to %d requests in flight, want %d", most, limit)
	}
}

// An id may be used again as soon as its request is answered.
func TestIDsAreUsedAgain(t *testing.T) {
	s := newSite(t, ServerOptions{})
	p := dial(t, s.listenTCP(t))
	p.greet(1)
	p.mustOpen()
	for i := range 600 {
		n := []int{100, 100_000, 300_000}[i%3]
		p.write(wire.Read{Image: 1, Length: uint32(n), Object: "pages.lz4"}.Append(nil, 7, uint8(i/3%2)*wire.FlagBackground))
		got, err := p.collect(7)
		same(t, "a read", got, err, s.objects["pages.lz4"][:n])
	}
	for range 100 {
		p.id = 6
		p.list("")
		p.write(wire.Read{Image: 1, Length: 100, Object: "none"}.Append(nil, 7, 0))
		wants(t, "a read of nothing", p.failed(p.next()), wire.CodeNoObject)
	}
}
