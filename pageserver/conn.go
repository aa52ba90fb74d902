package pageserver

import (
	"container/list"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// A conn is a connection being served.
type conn struct {
	server *Server
	nc     net.Conn
	raw    syscall.RawConn // nil where files cannot be sent to it
	dec    *wire.Decoder
	out    *outlet
	key    clientKey
	client *client       // nil before its HELLO
	quiet  *list.Element // under Server.mu: its place in Server.quiet; nil: in none

	writeUntil time.Time // a deadline, of who has the outlet

	answers sync.WaitGroup // goroutines that answer

	// The reader's own.
	images    map[uint32]*opened // by the client's number
	readUntil time.Time          // its deadline
	lookout   lookout
	demanding bool // there have been demand reads

	mu        sync.Mutex
	room      sync.Cond           // of mu: a request is answered
	flights   map[uint32]*request // under mu, by id: those whose last message has not been begun
	inFlight  int                 // under mu: requests that are not finished
	waiting   []*request          // under mu: background and LISTs, the next one first
	streaming bool                // under mu: a goroutine answers those
	state     connState           // under mu
}

// connState is how far the end of a connection is.
type connState uint8

const (
	running connState = iota
	leaving           // GOAWAY is being told, new requests are not taken
	told              // GOAWAY has been told
	closing           // nothing more is sent
)

// An opened image is one that a connection has a number for.
type opened struct {
	*held
	users int // under conn.mu: the number itself, and requests in flight
}

// decoderBuffer is short: a thousand idle clients have one each, and it holds
// what a restore sends at its start.
const decoderBuffer = 512

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{
		server: s, nc: nc, out: newOutlet(),
		images: make(map[uint32]*opened), flights: make(map[uint32]*request),
	}
	c.dec = wire.NewDecoder(c, wire.Server, decoderBuffer)
	c.room.L = &c.mu
	c.prepareSocket()
	return c
}

// serve runs the connection from its begin to its end.
func (c *conn) serve() {
	err := c.hello()
	for err == nil {
		err = c.next()
	}
	var fatal *wire.Error
	switch {
	case c.isClosing():
	case errors.As(err, &fatal):
		c.explain(err)
		c.farewell(fatal)
	case errors.Is(err, wire.ErrMalformed):
		c.explain(err)
		c.farewell(&wire.Error{Code: wire.CodeMalformed, Text: err.Error()})
	default:
		c.cut(err)
	}
	_ = c.nc.Close()
	c.stop()
	c.answers.Wait()
	for _, o := range c.images {
		c.server.catalog.release(o.held)
	}
	c.server.forget(c)
}

// explain logs why a connection ends.
func (c *conn) explain(err error) {
	log, peer := c.server.log, c.nc.RemoteAddr().String()
	var fatal *wire.Error
	switch {
	case errors.Is(err, io.EOF):
		log.Debug("connection closed", "peer", peer)
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.server.silent.Add(1)
		log.Info("a client said nothing, or took nothing, for too long", "peer", peer)
	case errors.Is(err, wire.ErrMalformed), errors.As(err, &fatal):
		c.server.malformed.Add(1)
		log.Warn("a client does not keep to the protocol", "peer", peer, "error", err)
	default:
		c.server.broken.Add(1)
		log.Info("connection broken", "peer", peer, "error", err)
	}
}

func (c *conn) isClosing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state == closing
}

func (c *conn) isLeaving() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state != running
}

// stop lets no more requests be taken; it reports whether they were up to now.
func (c *conn) stop() (first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	first = c.state != closing
	c.state = closing
	c.room.Broadcast()
	return first
}

// hello reads the client's HELLO and answers it.
func (c *conn) hello() error {
	if err := c.nc.SetReadDeadline(time.Now().Add(c.server.opts.HelloTime)); err != nil {
		return err
	}
	m, err := c.dec.Next()
	if err != nil {
		return err
	}
	if m.Type != wire.TypeHello {
		return fmt.Errorf("%w: %v before HELLO", wire.ErrMalformed, m.Type)
	}
	h, err := wire.ParseClientHello(m.Body)
	if errors.Is(err, wire.ErrVersion) {
		return &wire.Error{Code: wire.CodeVersion, Text: fmt.Sprintf("this server speaks version %d, not %d", wire.Version, h.Version)}
	}
	if err != nil {
		return err
	}
	c.key = clientKey{host: hostOf(c.nc), id: h.Client}
	if !c.server.join(c) {
		return net.ErrClosed
	}
	agent, _ := h.Fields.Get(wire.TagAgent)
	c.server.log.Debug("client", "peer", c.nc.RemoteAddr().String(), "agent", string(agent))
	opts := &c.server.opts
	return c.send(wire.ServerHello{
		Version: wire.Version, Server: c.server.id, Limits: opts.Limits,
		IdleTime: uint32(opts.IdleTime.Milliseconds()),
		Fields:   wire.Fields(nil).Append(wire.TagAgent, []byte(opts.Agent)),
	}.Append(nil))
}

// next reads a request and does what it asks for. An error ends the
// connection.
func (c *conn) next() error {
	if err := c.extend(); err != nil {
		return err
	}
	m, err := c.dec.Next()
	if errors.Is(err, os.ErrDeadlineExceeded) && c.busy() && c.dec.Between() {
		c.readUntil = time.Time{}
		return nil // it listens
	}
	if err != nil {
		return err
	}
	if m.ID == 0 {
		return fmt.Errorf("%w: %v with id 0", wire.ErrMalformed, m.Type)
	}
	switch m.Type {
	case wire.TypeRead:
		return c.read(m)
	case wire.TypeOpen:
		return c.open(m)
	case wire.TypeClose:
		return c.close(m)
	case wire.TypeList:
		return c.list(m)
	case wire.TypePing:
		return c.send(wire.AppendDone(nil, m.ID))
	case wire.TypeCancel:
		c.cancel(m.ID)
		return nil
	case wire.TypeHello:
		return fmt.Errorf("%w: a second HELLO", wire.ErrMalformed)
	case wire.TypeDone, wire.TypeError, wire.TypeOpened, wire.TypeData, wire.TypeListed, wire.TypeGoaway:
	}
	return c.reject(m.ID, wire.CodeUnsupported, "%v", m.Type)
}

// extend moves the deadline, but not for each message: that costs more than
// reading one.
func (c *conn) extend() error {
	idle := c.server.opts.IdleTime
	now := time.Now()
	if c.readUntil.Sub(now) > idle-idle/8 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == closing {
		return nil // it has a deadline, and keeps it
	}
	c.readUntil = now.Add(idle)
	return c.nc.SetReadDeadline(c.readUntil)
}

// busy reports whether the client waits for answers.
func (c *conn) busy() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.inFlight > 0 && c.state != closing
}

// send writes a short message.
func (c *conn) send(b []byte) error {
	c.out.take()
	defer c.out.give()
	return c.write(b)
}

// write writes to the connection; the caller has its outlet.
func (c *conn) write(b []byte) error {
	if err := c.extendWrite(); err != nil {
		return err
	}
	_, err := c.nc.Write(b)
	return err
}

// extendWrite is extend for writing; the caller has the outlet.
func (c *conn) extendWrite() error {
	limit := c.server.opts.WriteTime
	now := time.Now()
	if c.writeUntil.Sub(now) > limit-limit/8 {
		return nil
	}
	c.writeUntil = now.Add(limit)
	return c.nc.SetWriteDeadline(c.writeUntil)
}

// reject answers a request with an error.
func (c *conn) reject(id uint32, code wire.Code, format string, args ...any) error {
	return c.answerError(id, &wire.Error{Code: code, Text: fmt.Sprintf(format, args...)})
}

func (c *conn) answerError(id uint32, e *wire.Error) error {
	c.server.countError(e.Code)
	return c.send(e.Append(nil, id))
}

// open opens an image.
func (c *conn) open(m wire.Message) error {
	o, err := wire.ParseOpen(m.Body)
	if err != nil {
		return err
	}
	switch {
	case c.isLeaving():
		return c.turnAway(m.ID)
	case c.images[o.Image] != nil:
		return c.reject(m.ID, wire.CodeLimit, "image %d is open already", o.Image)
	case len(c.images) >= int(c.server.opts.Limits.Images):
		return c.reject(m.ID, wire.CodeLimit, "%d images are open", len(c.images))
	}
	wanted, _ := o.Fields.Get(wire.TagDigest)
	h, err := c.server.catalog.acquire(o.Name, wanted)
	if err != nil {
		c.server.log.Info("image not opened", "peer", c.nc.RemoteAddr().String(), "image", o.Name, "error", err)
		e, _ := errors.AsType[*wire.Error](err) // it always is one
		return c.answerError(m.ID, e)
	}
	c.images[o.Image] = &opened{held: h, users: 1}
	c.server.log.Info("image opened", "peer", c.nc.RemoteAddr().String(), "image", o.Name)
	reply := wire.Opened{Image: o.Image, Digest: h.digest, Objects: h.listed}
	return c.send(reply.Append(nil, m.ID))
}

// close lets an image go.
func (c *conn) close(m wire.Message) error {
	image, err := wire.ParseClose(m.Body)
	if err != nil {
		return err
	}
	o := c.images[image]
	delete(c.images, image)
	if o == nil {
		return c.reject(m.ID, wire.CodeNoImage, "no image is open as %d", image)
	}
	c.leaveImage(o)
	return c.send(wire.AppendDone(nil, m.ID))
}

// leaveImage ends one use of an image.
func (c *conn) leaveImage(o *opened) {
	c.mu.Lock()
	o.users--
	last := o.users == 0
	c.mu.Unlock()
	if last {
		c.server.catalog.release(o.held)
	}
}
