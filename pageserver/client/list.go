package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// An Image is one that a server has.
type Image struct {
	Name   string
	Size   int64  // bytes of all its objects
	Digest string // "sha256:" and 64 hex digits
}

// mostListed bounds what List keeps of what a server says, to some 90 MB.
const mostListed = 1 << 18

// List asks a server what images it has; they are in ascending order of their
// names. Of the options it heeds Dial and Timeout.
func List(ctx context.Context, s Server, opts Options) ([]Image, error) {
	if opts.Dial == nil {
		opts.Dial = Dial
	}
	if opts.Timeout == 0 {
		opts.Timeout = DefaultTimeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, opts.Timeout, ErrSilent)
	defer cancel()
	images, err := list(ctx, s, opts.Dial)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("list the images of %s: %w", s, err)
	}
	return images, nil
}

func list(ctx context.Context, s Server, dial Dialer) ([]Image, error) {
	c, err := dial(ctx, s)
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	defer c.Close()
	hello := wire.ClientHello{Version: wire.Version}
	_, _ = rand.Read(hello.Client[:])
	const id = 1
	_ = c.SetWriteDeadline(time.Now().Add(DefaultTimeout))
	if _, err := c.Write(wire.List{}.Append(hello.Append(nil), id)); err != nil {
		return nil, err
	}
	dec := wire.NewDecoder(c, wire.Client, readBuffer)
	var images []Image
	for {
		m, err := dec.Next()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
		switch {
		case m.Type == wire.TypeHello:
			if _, err := wire.ParseServerHello(m.Body); err != nil {
				return nil, err
			}
		case m.Type == wire.TypeError:
			e, err := wire.ParseError(m.Body)
			if err != nil {
				return nil, err
			}
			return nil, e
		case m.Type == wire.TypeListed && m.ID == id:
			l, err := wire.ParseListed(m.Body)
			if err != nil {
				return nil, err
			}
			for _, im := range l.Images {
				if len(images) > 0 && im.Name <= images[len(images)-1].Name {
					return nil, fmt.Errorf("%w: %q is listed behind %q", errProtocol, im.Name, images[len(images)-1].Name)
				}
				if len(images) == mostListed {
					return nil, fmt.Errorf("%w: it lists more than %d images", errProtocol, mostListed)
				}
				images = append(images, Image{im.Name, im.Size, digestText(im.Digest)})
			}
			if m.Flags&wire.FlagLast != 0 {
				return images, nil
			}
			if len(l.Images) == 0 {
				return nil, fmt.Errorf("%w: a list goes on with nothing", errProtocol)
			}
		case m.Type == wire.TypeGoaway:
		default:
			return nil, fmt.Errorf("%w: %v was not asked for", errProtocol, m.Type)
		}
	}
}
