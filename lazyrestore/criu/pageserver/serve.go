package pageserver

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pageset"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pagexfer"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// replyBytes is how much of a reply is read and sent at a time.
const replyBytes = 256 << 10

// Serve gives the pages of set to all clients that come to l, until ctx is done,
// which is no error. It closes l. Clients are independent of each other: they
// may restore the same tasks, at once or one after another.
func Serve(ctx context.Context, l net.Listener, set *pageset.Set, opts Options) error {
	return opts.accept(ctx, l, func(conn net.Conn, all *clients) error {
		c := &client{conn: conn, set: set, pages: set.NewReader()}
		defer c.pages.Close()
		return c.serve(ctx, func() { all.spoke(conn) })
	})
}

// A client is one that asks for pages.
type client struct {
	conn  net.Conn
	set   *pageset.Set
	pages *pageset.Reader
	buf   []byte
}

// serve answers requests until the client is done.
func (c *client) serve(ctx context.Context, spoke func()) error {
	dec := pagexfer.NewDecoder(bufio.NewReaderSize(c.conn, 4096))
	for first := true; ; first = false {
		h, err := dec.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if first {
			spoke()
		}
		switch h.Command {
		case pagexfer.Get:
			if err := c.give(ctx, dec.Dialect(), h); err != nil {
				return err
			}
		case pagexfer.Close, pagexfer.ForceClose:
			if err := sendStatus(c.conn, 0); err != nil {
				return err
			}
			if h.Command == pagexfer.Close {
				awaitClose(c.conn)
			}
			return nil
		default:
			return fmt.Errorf("%w: %s: this server gives pages, and takes none", pagexfer.ErrProtocol, h.Command)
		}
	}
}

// give answers one request with as many of its pages as the set has without a
// gap, up to pagexfer.MaxRequest. The error is for a request that cannot be
// answered.
func (c *client) give(ctx context.Context, d pagexfer.Dialect, h pagexfer.Header) error {
	m, err := c.set.Memory(ctx, imgfile.OfTask(int(h.ID)))
	if err != nil {
		return fmt.Errorf("%s: %w", h, err)
	}
	r := m.Extent(page.RangeOf(h.Addr, min(h.Pages, pagexfer.MaxRequest)<<page.Shift))
	if r.Empty() {
		return fmt.Errorf("%s: %w", h, pageset.ErrNoPage)
	}
	lane := image.Demand
	if r.Pages() > 1 {
		lane = image.Background
	}
	h = pagexfer.Header{Command: pagexfer.AddF, Flags: pagexfer.Present, Pages: r.Pages(), Addr: r.Start, ID: h.ID}
	if c.buf, err = d.Append(c.buf[:0], h); err != nil {
		return err
	}
	if _, records := c.conn.(*tls.Conn); records {
		// CRIU reads the header and then waits for the connection to become
		// readable, which what its TLS has read already does not make it: so
		// header and pages must not come in one record.
		if err := send(c.conn, c.buf); err != nil {
			return err
		}
		c.buf = c.buf[:0]
	}
	for !r.Empty() {
		at, n := len(c.buf), int(min(r.Len(), replyBytes))
		c.buf = append(c.buf, make([]byte, n)...)
		if err := c.pages.Read(ctx, m, r.Start, c.buf[at:], lane); err != nil {
			return fmt.Errorf("%s: %w", h, err)
		}
		if err := send(c.conn, c.buf); err != nil {
			return err
		}
		c.buf = c.buf[:0]
		r.Start += page.Addr(n)
	}
	return nil
}
