package pagexfer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// MaxRequest is how many pages CRIU asks for at most with one Get, and how
// many a Client does: what a reply takes of the stream is what the next one
// waits for.
const MaxRequest = 4 << 20 >> page.Shift

// maxPending is how many requests may be without their reply.
const maxPending = 4096

// A Client asks a page server for pages. Request and Receive may be called
// concurrently with each other; each by one goroutine at a time, or under a
// lock of the caller's. Close comes last.
//
// Replies come in the order of the requests. Whatever the server says, Receive
// gives pages that were asked for, or an error; after an error the connection
// is of no use.
type Client struct {
	rw      io.ReadWriter
	dialect Dialect
	out     []byte // of Request
	in      [maxHeader]byte

	mu      sync.Mutex
	pending []Request // under mu; the oldest first
}

// A Request is pages that were asked for. A server may give fewer of them, from
// the first one on; the rest has to be asked for again.
type Request struct {
	PID   uint32
	Addr  page.Addr
	Pages int
}

// header is the request as it is sent.
func (r Request) header() Header {
	return Header{Command: Get, Pages: uint64(r.Pages), Addr: r.Addr, ID: uint64(r.PID)}
}

var errPending = errors.New("too many requests without a reply")

// NewClient speaks to a server in its dialect.
func NewClient(rw io.ReadWriter, d Dialect) *Client { return &Client{rw: rw, dialect: d} }

// Request asks for 1 to MaxRequest pages.
func (c *Client) Request(r Request) error {
	if r.Pages < 1 || r.Pages > MaxRequest {
		return fmt.Errorf("ask for %d pages at %s: not 1 to %d", r.Pages, r.Addr, MaxRequest)
	}
	h := r.header()
	if err := h.check(); err != nil {
		return err
	}
	if err := c.expect(r); err != nil {
		return err
	}
	return c.send(h)
}

// expect notes a request, before it is sent: the reply may be quicker than we.
func (c *Client) expect(r Request) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.pending) >= maxPending {
		return errPending
	}
	c.pending = append(c.pending, r)
	return nil
}

func (c *Client) send(h Header) error {
	out, err := c.dialect.Append(c.out[:0], h)
	if err != nil {
		return err
	}
	c.out = out
	if _, err := c.rw.Write(out); err != nil {
		return fmt.Errorf("send %s: %w", h, err)
	}
	return nil
}

// Pending is the number of requests without a reply.
func (c *Client) Pending() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.pending)
}

// Receive waits for the next reply, whose pages it puts into the front of p,
// which has room for MaxRequest of them, or for as many as any request asked
// for. It gives the request and how many of its pages have come, at least one.
// The error is io.EOF where the server closed the connection between two
// replies, which is how it says that it has not got the page.
func (c *Client) Receive(p []byte) (r Request, pages int, err error) {
	b := c.in[:c.dialect.HeaderSize()]
	if n, err := io.ReadFull(c.rw, b); err != nil {
		if n == 0 && errors.Is(err, io.EOF) {
			return r, 0, io.EOF
		}
		return r, 0, fmt.Errorf("receive pages: %w", noEOF(err))
	}
	h, err := c.dialect.Parse(b)
	if err != nil {
		return r, 0, err
	}
	if r, err = c.match(h); err != nil {
		return r, 0, err
	}
	if h.Follows() > uint64(len(p)) {
		return r, 0, fmt.Errorf("receive %s: room for %d bytes", h, len(p))
	}
	if _, err := io.ReadFull(c.rw, p[:h.Follows()]); err != nil {
		return r, 0, fmt.Errorf("receive %s: %w", h, noEOF(err))
	}
	return r, int(h.Pages), nil
}

// match compares a reply with the oldest request, and takes that off the list.
func (c *Client) match(h Header) (Request, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.pending) == 0 {
		return Request{}, fmt.Errorf("%w: %s: nothing was asked for", ErrProtocol, h)
	}
	r := c.pending[0]
	if h.Command != AddF || h.Flags&Present == 0 || h.Addr != r.Addr || h.ID != uint64(r.PID) || h.Pages > uint64(r.Pages) {
		return r, fmt.Errorf("%w: %s is no reply to %s", ErrProtocol, h, r.header())
	}
	c.pending = append(c.pending[:0], c.pending[1:]...)
	return r, nil
}

// Close says that no more requests come, and waits for the server's word. The
// connection stays the caller's to close. With replies outstanding there is
// nothing to wait for: it is enough to close the connection.
func (c *Client) Close() error {
	if c.Pending() > 0 {
		return nil
	}
	if err := c.send(Header{Command: Close}); err != nil {
		return err
	}
	var status [4]byte
	if _, err := io.ReadFull(c.rw, status[:]); err != nil {
		return fmt.Errorf("receive the reply to CLOSE: %w", noEOF(err))
	}
	if code := int32(binary.LittleEndian.Uint32(status[:])); code != 0 {
		return fmt.Errorf("%w: the server ends with status %d", ErrProtocol, code)
	}
	return nil
}
