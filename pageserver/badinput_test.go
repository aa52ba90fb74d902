package pageserver

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"runtime/pprof"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/pageserver/wire"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// A server that has been spoken to badly still serves the others.
func stillServes(t *testing.T, s *site, addr net.Addr) {
	t.Helper()
	p := dial(t, addr)
	p.greet(99)
	got, err := p.mustOpen().read("process.bin", 0, 100_000, 0)
	same(t, "another client", got, err, s.objects["process.bin"])
	p.nc.Close()
}

func TestMalformed(t *testing.T) {
	hello := wire.ClientHello{Version: wire.Version}.Append(nil)
	random := make([]byte, 1<<20)
	_, _ = rand.Read(random)
	long := func(typ wire.Type, n uint32) []byte {
		b := withType(wire.AppendPing(nil, 1), typ)
		binary.LittleEndian.PutUint32(b, n)
		return b
	}
	flipped := wire.Open{Image: 1, Name: "one"}.Append(nil, 1)
	flipped[len(flipped)-1] ^= 1
	version := wire.ClientHello{Version: 2}.Append(nil)
	for _, tt := range []struct {
		name string
		say  []byte
		code wire.Code
	}{
		{"random bytes", random, wire.CodeMalformed},
		{"HTTP", []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"), wire.CodeMalformed},
		{"TLS", []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03abcdefghijklmnop"), wire.CodeMalformed},
		{"4 GiB of HELLO", long(wire.TypeHello, 1<<32-1), wire.CodeMalformed},
		{"a request before HELLO", wire.AppendPing(nil, 1), wire.CodeMalformed},
		{"another version", version, wire.CodeVersion},
		{"4 GiB of READ", append(hello, long(wire.TypeRead, 1<<32-1)...), wire.CodeMalformed},
		{"a flipped bit", append(hello, flipped...), wire.CodeMalformed},
		{"a second HELLO", append(hello, wire.Seal(bytes.Clone(hello))...), wire.CodeMalformed},
		{"request 0", append(hello, wire.AppendPing(nil, 0)...), wire.CodeMalformed},
		{"half a body", append(hello, withType(wire.AppendPing(nil, 1), wire.TypeRead)...), wire.CodeMalformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t, ServerOptions{})
			addr := s.listenTCP(t)
			p := dial(t, addr)
			p.write(bytes.Clone(tt.say))
			m := p.next()
			if m.Type == wire.TypeHello {
				m = p.next()
			}
			wants(t, tt.name, p.failed(m), tt.code)
			if m.ID != 0 {
				t.Errorf("of request %d", m.ID)
			}
			p.ended()
			stillServes(t, s, addr)
			if st := s.Stats(); st.Malformed != 1 {
				t.Errorf("%d malformed connections are counted, want 1", st.Malformed)
			}
		})
	}
}

func TestTheSameIDTwice(t *testing.T) {
	s := newSite(t, ServerOptions{})
	p := dial(t, s.listenTCP(t))
	p.greet(1)
	p.mustOpen()
	r := wire.Read{Image: 1, Length: 5 << 20, Object: "pages.lz4"}
	p.write(r.Append(r.Append(r.Append(nil, 7, wire.FlagBackground), 8, wire.FlagBackground), 8, wire.FlagBackground))
	for {
		m := p.next()
		if m.ID == 0 {
			wants(t, "an id that is in flight", p.failed(m), wire.CodeMalformed)
			return
		}
	}
}

// A message that stops half-way, or a client that says nothing, is waited for
// only so long.
func TestSilence(t *testing.T) {
	hello := wire.ClientHello{Version: wire.Version}.Append(nil)
	open := wire.Open{Image: 1, Name: "one"}.Append(nil, 1)
	for _, tt := range []struct {
		name string
		say  []byte
	}{
		{"nothing", nil},
		{"half a HELLO", hello[:20]},
		{"only HELLO", hello},
		{"half a header", append(bytes.Clone(hello), open[:5]...)},
		{"half a body", append(bytes.Clone(hello), open[:20]...)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			// Long enough for all that is said to come before.
			s := newSite(t, ServerOptions{HelloTime: time.Second, IdleTime: time.Second})
			p := dial(t, s.listenTCP(t))
			p.write(tt.say)
			for {
				if _, err := p.d.Next(); errors.Is(err, io.EOF) {
					break
				} else if err != nil {
					t.Fatal(err)
				}
			}
			for range 2 { // the server counts before it closes
				if st := s.Stats(); st.Silent != 1 {
					t.Errorf("%d silent connections are counted, want 1", st.Silent)
				}
			}
		})
	}
}

// Who is waiting for an answer is not silent, and neither is who pings.
func TestPing(t *testing.T) {
	t.Parallel()
	const idle = 2 * time.Second
	s := newSite(t, ServerOptions{IdleTime: idle})
	p := dial(t, s.listenTCP(t))
	p.greet(1)
	for begin := time.Now(); time.Since(begin) < 2*idle; {
		p.id++
		p.write(wire.AppendPing(nil, p.id))
		if m := p.next(); m.Type != wire.TypeDone || m.ID != p.id {
			t.Fatalf("%+v", m)
		}
		time.Sleep(20 * time.Millisecond) // the time between pings is what is tested
	}
}

// smallBuffers makes a connection that takes little.
func smallBuffers(t *testing.T, addr net.Addr) *peer {
	t.Helper()
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096) })
	}}
	nc, err := d.Dial(addr.Network(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	return newPeer(t, nc)
}

// stopReading are clients that do not take what they asked for: more than there are turns.
func stopReading(t *testing.T, addr net.Addr, flags uint8) (stuck []*peer) {
	for i := range 3 * runtime.NumCPU() {
		p := smallBuffers(t, addr)
		p.greet(byte(i))
		p.mustOpen()
		for range 8 {
			p.ask(wire.Read{Image: 1, Length: 5 << 20, Object: "pages.lz4"}, flags)
		}
		stuck = append(stuck, p)
	}
	return stuck
}

// Clients that do not take what they asked for keep nothing from the others.
func TestClientsThatStopReading(t *testing.T) {
	for _, flags := range []uint8{0, wire.FlagBackground} {
		s := newSite(t, ServerOptions{WriteTime: time.Hour})
		addr := s.listenTCP(t)
		stopReading(t, addr, flags)
		p := dial(t, addr)
		p.greet(200)
		p.mustOpen()
		for _, flags := range []uint8{0, wire.FlagBackground} {
			got, err := p.read("pages.lz4", 0, 5<<20, flags)
			same(t, "a client that reads", got, err, s.objects["pages.lz4"][:5<<20])
		}
		if n := s.Stats().Silent; n > 0 {
			t.Errorf("another client was served when %d were cut", n)
		}
	}
}

// They are cut in the end.
func TestClientsThatStopReadingAreCut(t *testing.T) {
	for _, flags := range []uint8{0, wire.FlagBackground} {
		s := newSite(t, ServerOptions{WriteTime: time.Second})
		stuck := stopReading(t, s.listenTCP(t), flags)
		for _, p := range stuck {
			if _, err := io.Copy(io.Discard, slow{p.nc}); err != nil && !errors.Is(err, syscall.ECONNRESET) {
				t.Error(err)
			}
		}
		if st := s.Stats(); st.Silent != uint64(len(stuck)) {
			t.Errorf("%d connections are counted as silent, want %d", st.Silent, len(stuck))
		}
	}
}

// A client that is slow, but takes what it asked for, is not cut: the time is
// that of a message, not of all that it reads.
func TestSlowClient(t *testing.T) {
	const writeTime = 2 * time.Second
	s := newSite(t, ServerOptions{WriteTime: writeTime})
	p := smallBuffers(t, s.listenTCP(t))
	p.greet(1)
	p.mustOpen()
	const size = 5 << 20
	id := p.ask(wire.Read{Image: 1, Length: size, Object: "pages.lz4"}, wire.FlagBackground)
	begin, got := time.Now(), make([]byte, 0, size)
	for len(got) < size {
		m := p.next()
		if err := p.failed(m); err != nil || m.ID != id {
			t.Fatalf("%+v, %v", m, err)
		}
		for left := m.Data.Length; left > 0; {
			part := make([]byte, min(left, 64<<10))
			if err := p.d.ReadPayload(part); err != nil {
				t.Fatalf("after %v and %d bytes: %v", time.Since(begin), len(got), err)
			}
			got, left = append(got, part...), left-len(part)
			time.Sleep(3 * writeTime / 2 / (size / (64 << 10))) // its slowness is what is tested
		}
	}
	same(t, "what a slow client reads", got, nil, s.objects["pages.lz4"][:size])
}

// slow waits until the other side has given up, and then reads what is there.
type slow struct{ net.Conn }

func (s slow) Read(p []byte) (int, error) {
	raw, err := s.Conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	// A poll that wakes for the end of the connection, not for bytes.
	_ = raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		for {
			if _, err := unix.Poll(fds, 10_000); !errors.Is(err, unix.EINTR) {
				return
			}
		}
	})
	return s.Conn.Read(p)
}

// Ten thousand connections: some are served, the others are told or closed, and
// then there is room again.
func TestTooManyConnections(t *testing.T) {
	const limit = 100
	all := 10_000
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	all = min(all, int(files.Cur)/2-limit)
	s := newSite(t, ServerOptions{MaxConns: limit})
	addr := s.listenTCP(t)
	hello := wire.ClientHello{Version: wire.Version}.Append(nil)
	conns := make([]net.Conn, all)
	for i := range conns {
		nc, err := net.Dial(addr.Network(), addr.String())
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		defer nc.Close()
		conns[i] = nc
		if i < limit {
			greet(t, nc) // one that has said nothing yet would give way
		} else {
			_, _ = nc.Write(hello) // it may have been closed
		}
	}
	served, told, closed := limit, 0, 0
	for _, nc := range conns[limit:] {
		_ = nc.SetReadDeadline(time.Now().Add(20 * time.Second))
		m, err := wire.NewDecoder(nc, wire.Client, 64).Next()
		switch {
		case err != nil:
			closed++
		case m.Type == wire.TypeHello:
			served++
		case m.Type == wire.TypeError:
			told++
			e, err := wire.ParseError(m.Body)
			if err != nil || e.Code != wire.CodeBusy {
				t.Fatalf("%v, %v", e, err)
			}
		}
	}
	t.Logf("of %d connections %d served, %d told, %d closed", all, served, told, closed)
	if served != limit || told == 0 {
		t.Errorf("%d served, want %d; %d told", served, limit, told)
	}
	if st := s.Stats(); st.Connections != limit || st.Refused != uint64(all-limit) {
		t.Errorf("%+v", st)
	}
	for _, nc := range conns {
		nc.Close()
	}
	for s.Stats().Connections == limit {
		runtime.Gosched()
	}
	stillServes(t, s, addr)
}

// Connections that say nothing keep nobody out, though there are as many as may be: the
// oldest gives way. One that has said HELLO does not, nor does one that has yet to say it
// while another address has more.
func TestSilentConnectionsGiveWay(t *testing.T) {
	const limit = 8
	s := newSite(t, ServerOptions{MaxConns: limit, HelloTime: time.Hour})
	addr := s.listenTCP(t)
	dial := func(from string) net.Conn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		nc, err := d.Dial(addr.Network(), addr.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { nc.Close() })
		_ = nc.SetReadDeadline(time.Now().Add(20 * time.Second))
		return nc
	}
	const attacker, other, third = "127.0.0.2", "127.0.0.3", "127.0.0.4"
	honest := dial(other)
	greet(t, honest)
	hesitant := dial(third) // it is older than what comes now
	silent := make([]net.Conn, 3*limit)
	for i := range silent {
		silent[i] = dial(attacker)
	}
	late := dial(other)
	greet(t, late)
	greet(t, hesitant)
	// All that are one too many end; which of those that are left does, is the newest's to say.
	for _, nc := range silent[:2*limit+3] {
		if _, err := nc.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("a silent connection: %v", err)
		}
	}
	for _, nc := range []net.Conn{honest, hesitant, late} {
		if _, err := nc.Write(wire.AppendPing(nil, 1)); err != nil {
			t.Error(err)
		}
		if m, err := wire.NewDecoder(nc, wire.Client, 64).Next(); err != nil || m.Type != wire.TypeDone {
			t.Errorf("a connection that has said HELLO: %v, %v", m, err)
		}
	}
	if st := s.Stats(); st.Connections != limit || st.GaveWay != 2*limit+3 || st.Refused != 0 {
		t.Errorf("%+v", st)
	}
}

// Where several origins have as many, not always the same one loses; an address is as good as
// its network.
func TestOriginsThatGiveWay(t *testing.T) {
	from := func(ip string) *conn { return &conn{nc: addressed{ip: net.ParseIP(ip)}} }
	q := make(quiet)
	conns := map[string]*conn{}
	for _, ip := range []string{"192.0.2.1", "192.0.2.2", "2001:db8::1"} {
		conns[ip] = from(ip)
		q.add(conns[ip])
	}
	lost := map[*conn]bool{}
	for range 1000 {
		lost[q.oldest("192.0.2.3")] = true
	}
	if len(lost) != len(conns) {
		t.Errorf("of %d origins with one connection each %d lose it", len(conns), len(lost))
	}
	q.add(from("2001:db8::2"))
	for range 1000 {
		if q.oldest("192.0.2.3") != conns["2001:db8::1"] {
			t.Fatal("another network than that with most of them loses one")
		}
	}
	q.remove(conns["2001:db8::1"])
	for range 1000 {
		if q.oldest("192.0.2.2") != conns["192.0.2.2"] {
			t.Fatal("the newcomer's origin has one more, and another one loses")
		}
	}
}

// addressed is a connection of which only the peer's address is known.
type addressed struct {
	net.Conn
	ip net.IP
}

func (a addressed) RemoteAddr() net.Addr { return &net.TCPAddr{IP: a.ip, Port: 1} }

// greet says HELLO, and waits for the answer.
func greet(t *testing.T, nc net.Conn) {
	t.Helper()
	if _, err := nc.Write(wire.ClientHello{Version: wire.Version}.Append(nil)); err != nil {
		t.Fatal(err)
	}
	if m, err := wire.NewDecoder(nc, wire.Client, 64).Next(); err != nil || m.Type != wire.TypeHello {
		t.Fatalf("%v, %v", m, err)
	}
}

// A message that stops half-way is not taken for the begin of another, however busy its
// connection is: it ends for silence.
func TestHalfAMessageOfABusyClient(t *testing.T) {
	t.Parallel()
	s := newSite(t, ServerOptions{IdleTime: 2 * time.Second, WriteTime: time.Hour})
	p := smallBuffers(t, s.listenTCP(t))
	p.greet(1)
	p.mustOpen()
	for range 8 { // more than it takes
		p.ask(wire.Read{Image: 1, Length: 5 << 20, Object: "pages.lz4"}, wire.FlagBackground)
	}
	ask := wire.Read{Image: 1, Length: 10, Object: "process.bin"}.Append(nil, 77, 0)
	p.write(ask[:wire.HeaderSize+4])
	for limit := time.Now().Add(uffdtest.Timeout); s.Stats().Silent == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("a client that stops within a message is still listened to: %+v", s.Stats())
		}
	}
	if n := s.Stats().Malformed; n > 0 {
		t.Errorf("%d connections do not keep to the protocol", n)
	}
}

// A client that asks for lists and takes none costs one at a time.
func TestListsThatNobodyTakes(t *testing.T) {
	s := newSite(t, ServerOptions{WriteTime: time.Hour})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := net.Pipe()
	conns := make(chan net.Conn, 1)
	conns <- theirs
	close(conns)
	s.listen(t, pipes{ln, conns})
	p := newPeer(t, ours)
	p.greet(1)
	for i := range uint32(200) {
		p.write(wire.List{}.Append(nil, i+1)) // the server has read what is written, but for its buffer
	}
	var stacks bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&stacks, 2); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(stacks.String(), "(*conn).sendList("); n > 1 {
		t.Errorf("%d lists are made at once", n)
	}
	for range 200 {
		if m := p.next(); m.Type != wire.TypeListed {
			t.Fatalf("%+v", m)
		}
	}
}

// pipes is a listener for ends of net.Pipe, which hold nothing that is not read.
type pipes struct {
	net.Listener // whose address it has, and whose end is its own
	conns        chan net.Conn
}

func (l pipes) Accept() (net.Conn, error) {
	if c, ok := <-l.conns; ok {
		return c, nil
	}
	return l.Listener.Accept()
}
