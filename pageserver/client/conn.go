package client

import (
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

const (
	// imageID is what the one image of a connection is called on it.
	imageID = 1
	// gulp is how much of a payload of the background the reader waits for at a
	// time, where so much comes quickly: being woken for each packet takes longer
	// than to read it. It begins with firstGulp, for a slow link is not a silent one:
	// of one that turns slow lane.watch has the reader woken for whatever has come.
	gulp      = 512 << 10
	firstGulp = 4 << 10
	// slice is how much of a payload has to come for it not to be asked for again.
	slice = 64 << 10
	// quickly is what part of the time after which a server is silent a gulp may
	// take to be followed by a larger one.
	quickly = 64
	// readBuffer is for headers and small replies; payloads go past it.
	readBuffer = 16 << 10
)

var (
	errProtocol = errors.New("the server does not keep to the protocol")
	errLeaving  = errors.New("the server is leaving")
)

// A conn is one connection of a lane. Its reader is the one goroutine that
// ends it: everyone else closes the Conn.
type conn struct {
	lane   *lane
	server *server
	c      Conn
	in     *intake
	dec    *wire.Decoder
	heard  atomic.Int64  // when something came last, or was asked of a connection with nothing in flight
	came   atomic.Int64  // bytes of payloads
	ready  chan struct{} // closed when the image is open, or never will be
	gone   chan struct{} // closed when the reader has ended

	gulp int // of the reader: what fill waits for

	writing sync.Mutex // held while something is written

	// Guarded by lane.mu.
	inflight map[uint32]*request
	last     uint32 // id given
	limit    int    // requests in flight
	longest  int    // bytes that are asked for in one READ
	idle     time.Duration
	began    time.Time     // when the greeting was sent
	trip     time.Duration // until it was answered
	opened   bool
	proved   bool // it has answered something
	leaving  bool
	filling  *request // whose buffer the reader writes to
	why      error    // the first reason to close
	mark     mark
}

// newConn is a connection on which nothing was said.
func newConn(l *lane, s *server, c Conn) *conn {
	in := newIntake(c)
	k := &conn{
		lane: l, server: s, c: c, in: in, dec: wire.NewDecoder(in, wire.Client, readBuffer),
		ready: make(chan struct{}), gone: make(chan struct{}),
		inflight: make(map[uint32]*request), limit: wire.MinRequests - 1, longest: wire.MinRead,
		idle: time.Minute, gulp: firstGulp,
	}
	k.heard.Store(time.Now().UnixNano())
	return k
}

// greeting is what every connection begins with.
func (k *conn) greeting(dst []byte) []byte {
	hello := wire.ClientHello{Version: wire.Version, Client: k.lane.client.id}
	hello.Fields = hello.Fields.Append(wire.TagAgent, []byte("lazyrestore"))
	dst = hello.Append(dst)
	k.last++
	k.began = time.Now()
	open := wire.Open{Image: imageID, Name: k.lane.client.addr.Image}
	if digest := k.lane.client.wanted(); digest != nil {
		open.Fields = open.Fields.Append(wire.TagDigest, digest)
	}
	return open.Append(dst, k.last)
}

// openID is the id of the greeting's OPEN.
const openID = 1

// take gives the connection of the lane's waiting requests as many as it may
// have in flight, and appends them to dst. The caller holds lane.mu.
func (k *conn) take(dst []byte) []byte {
	l := k.lane
	for len(l.waiting) > 0 && len(k.inflight) < k.limit {
		r := l.waiting[0]
		l.waiting = l.waiting[1:]
		dst = k.add(dst, r)
	}
	return dst
}

func (k *conn) add(dst []byte, r *request) []byte {
	if len(k.inflight) == 0 {
		k.heard.Store(time.Now().UnixNano())
	}
	k.last++
	if k.last <= openID { // it went round
		k.last = openID + 1
	}
	for k.inflight[k.last] != nil {
		k.last++
	}
	r.from(k.server)
	r.on, r.id, r.to, r.sent = k, k.last, r.n+min(r.size-r.n, k.longest), time.Now()
	k.inflight[r.id] = r
	return r.append(dst, imageID, k.lane.background)
}

// takeBack is what is in flight on the connection, in the order in which it was sent, and not any more. The caller
// holds lane.mu.
func (k *conn) takeBack() []*request {
	back := make([]*request, 0, len(k.inflight))
	for _, r := range k.inflight {
		r.on = nil
		back = append(back, r)
	}
	clear(k.inflight)
	slices.SortFunc(back, func(a, b *request) int { return int(a.id) - int(b.id) })
	return back
}

// close has the reader end; the first reason counts.
func (k *conn) close(why error) {
	k.lane.mu.Lock()
	if k.why == nil {
		k.why = why
	}
	k.lane.mu.Unlock()
	_ = k.c.Close()
}

// write sends b. Requests are small: who does not take them is lost.
func (k *conn) write(b []byte) {
	if len(b) == 0 {
		return
	}
	k.writing.Lock()
	defer k.writing.Unlock()
	if b = b[k.in.writeNow(b):]; len(b) == 0 {
		return
	}
	_ = k.c.SetWriteDeadline(time.Now().Add(k.lane.client.opts.Timeout))
	if _, err := k.c.Write(b); err != nil {
		k.close(err)
	}
}

// read takes in what the server says until the connection ends, and gives
// what is not answered back to the lane.
func (k *conn) read() {
	err := k.messages()
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("the server has closed the connection: %w", err)
	}
	k.close(err) // or who writes meanwhile would say that it is closed
	k.lane.lost(k, err)
	close(k.gone)
}

func (k *conn) messages() error {
	if err := k.hello(); err != nil {
		return err
	}
	for {
		m, err := k.dec.Next()
		if err != nil {
			return err
		}
		k.heard.Store(time.Now().UnixNano())
		if err := k.handle(&m); err != nil {
			return err
		}
	}
}

// hello reads the server's, or its refusal.
func (k *conn) hello() error {
	m, err := k.dec.Next()
	if err != nil {
		return err
	}
	switch m.Type {
	case wire.TypeHello:
	case wire.TypeError:
		return k.refusal(&m)
	default:
		return fmt.Errorf("%w: it begins with %v", errProtocol, m.Type)
	}
	h, err := wire.ParseServerHello(m.Body)
	if err != nil {
		return err
	}
	k.lane.mu.Lock()
	defer k.lane.mu.Unlock()
	k.trip = time.Since(k.began)
	k.limit = int(min(h.Limits.Requests, mostRequests))
	k.longest = int(min(h.Limits.Read, math.MaxInt32))
	if h.IdleTime > 0 {
		k.idle = time.Duration(h.IdleTime) * time.Millisecond
	}
	return nil
}

// mostRequests bounds what a connection has in flight, whatever the server
// grants.
const mostRequests = 256

// refusal is the error that the server sends as the connection's last word.
func (k *conn) refusal(m *wire.Message) error {
	e, err := wire.ParseError(m.Body)
	if err != nil {
		return err
	}
	return e
}

func (k *conn) handle(m *wire.Message) error {
	switch m.Type {
	case wire.TypeData:
		return k.data(m)
	case wire.TypeOpened:
		return k.open(m)
	case wire.TypeError:
		return k.failed(m)
	case wire.TypeDone:
		k.lane.finish(k, m.ID, nil)
		return nil
	case wire.TypeGoaway:
		k.leave()
		return nil
	case wire.TypeHello, wire.TypeOpen, wire.TypeRead, wire.TypeClose, wire.TypeList,
		wire.TypePing, wire.TypeCancel, wire.TypeListed:
	}
	return fmt.Errorf("%w: %v was not asked for", errProtocol, m.Type)
}

// open is the reply to OPEN.
func (k *conn) open(m *wire.Message) error {
	o, err := wire.ParseOpened(m.Body)
	if err != nil {
		return err
	}
	if m.ID != openID || k.opened {
		return fmt.Errorf("%w: %v was not asked for", errProtocol, m.Type)
	}
	if err := k.lane.client.accept(o); err != nil {
		return err
	}
	if !k.lane.adopt(k) {
		return errNotNeeded
	}
	close(k.ready)
	k.lane.pump()
	return nil
}

// failed is an ERROR. What another server may do better ends this connection.
func (k *conn) failed(m *wire.Message) error {
	e, err := wire.ParseError(m.Body)
	switch {
	case err != nil:
		return err
	case m.ID == 0:
		return e
	case m.ID == openID && !k.opened && e.Code == wire.CodeNoImage:
		return fmt.Errorf("%w%s", ErrNoImage, quoted(e.Text))
	case m.ID == openID && !k.opened:
		return e
	case e.Code == wire.CodeCancelled:
		return nil
	case e.Code == wire.CodeNoObject && k.lane.isShort(k, m.ID):
		k.lane.finish(k, m.ID, e)
		return nil
	}
	if !k.lane.has(k, m.ID) {
		return nil // given up by whoever asked
	}
	return e
}

func quoted(text string) string {
	if text == "" {
		return ""
	}
	return " (" + text + ")"
}

// leave is a GOAWAY: what is in flight is answered, what comes later goes
// elsewhere.
func (k *conn) leave() {
	l := k.lane
	l.mu.Lock()
	again := k.leaving
	k.leaving = true
	l.client.servers.failed(k.server, errLeaving)
	if l.conn == k {
		l.conn = nil
		if len(l.waiting) > 0 {
			l.wake()
		}
	}
	empty := len(k.inflight) == 0
	if !empty && !again {
		l.leaving = append(l.leaving, k)
	}
	l.mu.Unlock()
	if empty {
		k.close(errLeaving)
	}
}

// data reads the payload of a DATA to where it belongs.
func (k *conn) data(m *wire.Message) error {
	if !k.opened {
		return fmt.Errorf("%w: %v before the image is open", errProtocol, m.Type)
	}
	r, room, err := k.begin(m)
	if err != nil || r == nil {
		return err // the decoder passes over what nobody wants
	}
	if err := k.fill(r, room); err != nil {
		return err
	}
	return k.end(r, m)
}

// fill reads a payload to its request's room.
func (k *conn) fill(r *request, room []byte) error {
	if k.lane.background {
		defer k.in.expect(1)
	}
	came := 0 // bytes that are not counted yet
	for len(room) > 0 {
		if k.lane.background {
			k.in.expect(min(k.gulp, len(room)-k.dec.Buffered()))
		}
		n, err := k.dec.ReadSome(room)
		if err != nil {
			return err
		}
		room = room[n:]
		k.came.Add(int64(n))
		if came += n; came >= slice || len(room) == 0 {
			r.n += came // lane.mu is not needed: filling keeps others away
			came = 0
		}
		now := time.Now().UnixNano()
		if took := now - k.heard.Swap(now); took < int64(k.lane.client.opts.Timeout)/quickly {
			k.gulp = min(2*k.gulp, gulp)
		} else {
			k.gulp = firstGulp
		}
	}
	return nil
}

// begin finds the request of a DATA and keeps others from its buffer.
func (k *conn) begin(m *wire.Message) (*request, []byte, error) {
	l := k.lane
	l.mu.Lock()
	defer l.mu.Unlock()
	r := k.inflight[m.ID]
	if r == nil {
		return nil, nil, nil
	}
	if r.ping {
		return nil, nil, fmt.Errorf("%w: %v to a PING", errProtocol, m.Type)
	}
	room := r.room(m.Data)
	if room == nil {
		return nil, nil, fmt.Errorf("%w: %d bytes at %d of %s, where %d were asked for", errProtocol,
			m.Data.Length, m.Data.Offset, r.object, r.off+int64(r.n))
	}
	k.filling = r
	return r, room, nil
}

// end lets go of a request's buffer, and of the request with its last DATA.
func (k *conn) end(r *request, m *wire.Message) error {
	l := k.lane
	l.mu.Lock()
	k.filling = nil
	l.client.traffic[l.kind].Add(uint64(m.Data.Length))
	last := m.Flags&wire.FlagLast != 0
	if last && !k.proved {
		k.proved = true
		l.client.servers.well(k.server)
	}
	short := r.n < r.size
	if last && short && r.short {
		r.p, r.size = r.p[:r.n], r.n
		short = false
	}
	if last && short && !r.short && r.n == r.to {
		k.again(r)
		short = false
	}
	l.mu.Unlock()
	switch {
	case !last:
		return nil
	case short:
		return fmt.Errorf("%w: %d bytes of %s, of %d", errProtocol, r.n, r.object, r.size)
	}
	l.finish(k, m.ID, nil)
	return nil
}

// again has what is left of a request asked for: it is longer than a READ may
// be. The caller holds lane.mu, and finishes the READ.
func (k *conn) again(r *request) {
	delete(k.inflight, r.id)
	r.on = nil
	k.lane.waiting = slices.Insert(k.lane.waiting, 0, r)
}
