package client

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// A Conn is a connection to a server. Close ends a Read and a Write that are
// under way. One that is a syscall.Conn too, as those of package net and files
// are, is read by its descriptor: a type that embeds one to change what Read
// gives must not be.
type Conn interface {
	io.ReadWriteCloser
	SetWriteDeadline(t time.Time) error
}

// A Dialer connects to a server.
type Dialer func(ctx context.Context, s Server) (Conn, error)

// DefaultTimeout is how long a server may be silent that should answer.
const DefaultTimeout = 5 * time.Second

// Options say how a Client works. The zero value does.
type Options struct {
	// Dial connects; Dial of this package if nil, which knows neither names of
	// hosts nor TLS.
	Dial Dialer
	// Digest is the image's digest, "sha256:" and 64 hex digits, where it has
	// to be a certain one. Else it is that of the server which answers first,
	// and other servers have to have the same.
	Digest string
	// Timeout is how long connecting may take, and how long a server may be
	// silent that should answer, until another one is tried; DefaultTimeout
	// if zero.
	Timeout time.Duration
	// Whole fetches at the start what a restore reads first. It costs nothing
	// but the bytes, which are of no use to who only looks into the image.
	Whole  bool
	Logger *slog.Logger // discards if nil
}

// A Client reads one image from its servers. It is an image.Source,
// image.Immediate and image.Rejecter; all methods but Close may be called
// concurrently.
type Client struct {
	addr    Address
	opts    Options
	id      [16]byte // the same on all connections
	lanes   [2]*lane // by image.Lane
	servers *servers
	early   early
	ahead   ahead
	prompt  prompt
	reject  rejected
	traffic [2]atomic.Uint64 // payload bytes, by lane
	ctx     context.Context  // of the client's own goroutines
	stop    context.CancelFunc
	running sync.WaitGroup

	mu     sync.Mutex
	opened *wire.Opened     // guarded by mu: what the first server said; nil until then
	sizes  map[string]int64 // guarded by mu until opened is set
}

var (
	_ image.Source    = (*Client)(nil)
	_ image.Immediate = (*Client)(nil)
	_ image.Rejecter  = (*Client)(nil)
	_ image.Digester  = (*Client)(nil)
)

// Open opens an image. It returns when a server has said what the image holds,
// or when none could be had. The error is then an *UnavailableError; it wraps
// ErrNoImage if that is what a server says.
func Open(ctx context.Context, addr Address, opts Options) (*Client, error) {
	if addr.Image == "" {
		return nil, badAddress(addr.String(), "it names no image; inspect lists those of a server")
	}
	if opts.Dial == nil {
		opts.Dial = Dial
	}
	if opts.Timeout == 0 {
		opts.Timeout = DefaultTimeout
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Digest != "" {
		var err error
		if opts.Digest, err = image.ParseDigest(opts.Digest); err != nil {
			return nil, err
		}
	}
	c := &Client{addr: addr, opts: opts, servers: newServers(addr.Servers)}
	c.ctx, c.stop = context.WithCancel(context.Background())
	_, _ = rand.Read(c.id[:])
	c.lanes[image.Demand] = newLane(c, image.Demand)
	c.lanes[image.Background] = newLane(c, image.Background)
	if opts.Whole {
		c.early.ask(c.lanes[image.Demand])
	}
	if err := c.lanes[image.Demand].round(ctx); err != nil {
		c.stop()
		c.lanes[image.Demand].close()
		c.running.Wait()
		return nil, err
	}
	for _, l := range c.lanes {
		c.running.Go(func() { l.run(c.ctx) })
	}
	if opts.Whole {
		c.openPrompt()
	}
	return c, nil
}

// Address is where the image is.
func (c *Client) Address() Address { return c.addr }

// String names the image and its servers.
func (c *Client) String() string { return c.addr.String() }

// Digest is the image's digest, "sha256:" and 64 hex digits.
func (c *Client) Digest() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return digestText(c.opened.Digest)
}

const digestPrefix = "sha256:"

func digestText(d [32]byte) string { return digestPrefix + hex.EncodeToString(d[:]) }

// accept looks whether the image that a server has opened is the one wanted.
func (c *Client) accept(o *wire.Opened) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.opt() != "" && c.opt() != digestText(o.Digest) {
		return fmt.Errorf("%w: its digest is %s, not %s", ErrOtherImage, digestText(o.Digest), c.opt())
	}
	if c.opened == nil {
		c.sizes = make(map[string]int64, len(o.Objects))
		for _, object := range o.Objects {
			c.sizes[object.Name] = object.Size
		}
		c.opened = o
	}
	return nil
}

// wanted is the digest that a server's image has to have; nil for any.
func (c *Client) wanted() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	digest, err := hex.DecodeString(strings.TrimPrefix(c.opt(), digestPrefix))
	if err != nil || len(digest) == 0 {
		return nil
	}
	return digest
}

// opt is the text of that digest; "" for any. The caller holds mu.
func (c *Client) opt() string {
	if c.opened != nil {
		return digestText(c.opened.Digest)
	}
	return c.opts.Digest
}

// Size is image.Source's.
func (c *Client) Size(ctx context.Context, object string) (int64, error) {
	if err := context.Cause(ctx); err != nil {
		return 0, err
	}
	return c.size(object)
}

// size is known without asking: the first server has said it.
func (c *Client) size(object string) (int64, error) {
	size, ok := c.sizes[object]
	if !ok {
		return 0, &fs.PathError{Op: "read", Path: c.addr.String() + ": " + object, Err: fs.ErrNotExist}
	}
	return size, nil
}

// check looks whether a range is within its object.
func (c *Client) check(object string, n int, off int64) error {
	size, err := c.size(object)
	switch {
	case err != nil:
		return err
	case off < 0 || int64(n) > math.MaxInt64-off:
		return &fs.PathError{Op: "read", Path: c.addr.String() + ": " + object, Err: fs.ErrInvalid}
	case off+int64(n) > size:
		return fmt.Errorf("read %s of %s at offset %d: %w", object, c.addr, off, io.ErrUnexpectedEOF)
	}
	return nil
}

// ReadRange is image.Source's. It goes on for as long as there is a server to
// ask; an error is one of the range itself, the context's, or an
// *UnavailableError.
func (c *Client) ReadRange(ctx context.Context, object string, p []byte, off int64, lane image.Lane) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if err := c.check(object, len(p), off); err != nil {
		return err
	}
	if err := c.reject.check(c.addr, object, off, len(p)); err != nil {
		return err
	}
	n, err := c.early.read(ctx, c, object, p, off)
	if err != nil || n == len(p) {
		return err
	}
	p, off = p[n:], off+int64(n)
	if lane == image.Background {
		return c.ahead.read(ctx, c, object, p, off)
	}
	return c.fetch(ctx, lane, object, p, off)
}

// fetch asks for a range and waits for it.
func (c *Client) fetch(ctx context.Context, lane image.Lane, object string, p []byte, off int64) error {
	l := c.lanes[lane]
	reqs := make([]*request, 0, (len(p)+wire.MinRead-1)/wire.MinRead)
	for done := 0; done < len(p); done += wire.MinRead {
		q := p[done:min(done+wire.MinRead, len(p))]
		reqs = append(reqs, newRequest(object, off+int64(done), q))
	}
	l.send(reqs...)
	var failed error
	for _, r := range reqs {
		if err := l.wait(ctx, r); err != nil {
			if failed == nil {
				failed = err
			}
			continue
		}
		c.reject.note(r)
	}
	return failed
}

// ReadNow is image.Immediate's: what was read ahead is there.
func (c *Client) ReadNow(object string, p []byte, off int64) (bool, error) {
	if err := c.check(object, len(p), off); err != nil {
		return false, err
	}
	return c.ahead.now(c, object, p, off), nil
}

// Traffic is how many bytes of the image have come over the network, in each
// lane.
func (c *Client) Traffic() (demand, background uint64) {
	return c.traffic[image.Demand].Load(), c.traffic[image.Background].Load()
}

// Close closes all connections.
func (c *Client) Close() error {
	c.stop()
	for _, l := range c.lanes {
		l.close()
	}
	c.running.Wait()
	c.prompt.busy.Lock()
	defer c.prompt.busy.Unlock()
	c.prompt.close()
	return nil
}

// Errors that a caller may want to tell apart.
var (
	ErrNoImage    = errors.New("the server has no such image")
	ErrOtherImage = errors.New("the server has another image under this name")
	ErrSilent     = errors.New("the server is silent")
	ErrClosed     = errors.New("the client is closed")
	ErrDamaging   = errors.New("every server that answers gives damaged bytes")
)

// An UnavailableError says why no server gives the image.
type UnavailableError struct {
	Address Address
	Servers []ServerError // one for each, in the order of the address
}

// A ServerError is what is wrong with one server.
type ServerError struct {
	Server Server
	Err    error
}

// Error names each server and what is wrong with it.
func (e *UnavailableError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "no server gives image %s: ", e.Address.Image)
	for i, s := range e.Servers {
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "%s: %v", s.Server, s.Err)
	}
	return b.String()
}

// Unwrap gives the errors of the servers, but for those that would say something of the image: that
// a connection ends does not mean that an object does, which image.Source says by the same error, nor a socket that
// is not there an object that is not.
func (e *UnavailableError) Unwrap() []error {
	errs := make([]error, 0, len(e.Servers))
	for _, s := range e.Servers {
		if !errors.Is(s.Err, io.EOF) && !errors.Is(s.Err, io.ErrUnexpectedEOF) && !errors.Is(s.Err, fs.ErrNotExist) {
			errs = append(errs, s.Err)
		}
	}
	return errs
}
