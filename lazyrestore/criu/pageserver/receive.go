package pageserver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pagexfer"
)

// A Target is where a dump goes. Its methods are called from one goroutine, and
// after an error only Abort is.
type Target interface {
	// HasParent reports whether the set that this one builds on has that memory.
	HasParent(ctx context.Context, id imgfile.MemoryID) (bool, error)
	// Begin starts a memory, and ends the one before. Each is begun once.
	Begin(ctx context.Context, id imgfile.MemoryID) error
	// Add adds pages to the memory that was begun last. Entries ascend. The
	// pages of one with Present are the next bytes of r.
	Add(ctx context.Context, e imgfile.Entry, r io.Reader) error
	// Commit makes what was added durable and puts it in its place.
	Commit(ctx context.Context) error
	// Abort removes what was added. After a Commit without an error it does nothing.
	Abort()
}

var (
	errBusy    = errors.New("another dump is being received")
	errGivenUp = errors.New("the client closed the connection before the end of its dump")
)

// Receive takes one dump, from whichever client of l begins one first, and ends
// with it; other clients are turned away. It closes l. If the error is not
// nil, t has been aborted.
func Receive(ctx context.Context, l net.Listener, t Target, opts Options) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var mu sync.Mutex
	taken, done := false, false
	var failure error
	err := opts.accept(ctx, l, func(conn net.Conn, all *clients) error {
		s := &session{conn: conn, r: bufio.NewReaderSize(conn, 64<<10), target: t}
		s.dec = pagexfer.NewDecoder(s.r)
		h, err := s.dec.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		all.spoke(conn)
		mu.Lock()
		mine := !taken
		taken = true
		mu.Unlock()
		if !mine {
			return errBusy
		}
		failure = s.run(ctx, h)
		done = true
		stop(nil)
		return failure
	})
	switch {
	case done && failure == nil:
		return nil
	case failure != nil:
		err = failure
	case err == nil && ctx.Err() != nil:
		err = context.Cause(ctx)
	case err == nil:
		err = errGivenUp // the listener has given all the connections that it had
	}
	t.Abort()
	return err
}

// A session is one dump.
type session struct {
	conn   net.Conn
	r      *bufio.Reader
	dec    *pagexfer.Decoder
	target Target

	current imgfile.MemoryID
	begun   map[imgfile.MemoryID]bool
}

// run takes a dump whose first header is h.
func (s *session) run(ctx context.Context, h pagexfer.Header) error {
	s.begun = map[imgfile.MemoryID]bool{}
	for {
		switch h.Command {
		case pagexfer.Close, pagexfer.ForceClose:
			return s.finish(ctx, h)
		default:
			if err := s.one(ctx, h); err != nil {
				return fmt.Errorf("receive %s: %w", h, err)
			}
		}
		var err error
		if h, err = s.dec.Next(); errors.Is(err, io.EOF) {
			return errGivenUp
		} else if err != nil {
			return err
		}
	}
}

// one does what one header says.
func (s *session) one(ctx context.Context, h pagexfer.Header) error {
	switch h.Command {
	case pagexfer.Open, pagexfer.Open2, pagexfer.Parent, pagexfer.Add, pagexfer.Hole, pagexfer.AddF:
	default:
		return fmt.Errorf("%w: this server takes pages, and gives none", pagexfer.ErrProtocol)
	}
	kind, number, err := h.Image()
	if err != nil {
		return err
	}
	id := imgfile.MemoryID{Kind: imgfile.Kind(kind), ID: number}
	switch h.Command {
	case pagexfer.Parent:
		has, err := s.target.HasParent(ctx, id)
		if err != nil {
			return err
		}
		return sendStatus(s.conn, int32(flag(has)))
	case pagexfer.Open, pagexfer.Open2:
		if err := s.begin(ctx, id); err != nil {
			return err
		}
		if h.Command == pagexfer.Open {
			return nil
		}
		has, err := s.target.HasParent(ctx, id)
		if err != nil {
			return err
		}
		return send(s.conn, []byte{flag(has)})
	default: // pages
	}
	if id != s.current {
		if err := s.begin(ctx, id); err != nil {
			return err
		}
	}
	return s.target.Add(ctx, imgfile.Entry{Range: h.Range(), Flags: flagsOf(h)}, s.r)
}

// maxMemories is how many memories a dump has at most.
const maxMemories = 1 << 17

// begin starts a memory.
func (s *session) begin(ctx context.Context, id imgfile.MemoryID) error {
	if s.begun[id] {
		return fmt.Errorf("%w: %s comes twice", pagexfer.ErrProtocol, id.File())
	}
	if len(s.begun) == maxMemories {
		return fmt.Errorf("%w: more than %d memories in one dump", pagexfer.ErrProtocol, maxMemories)
	}
	s.begun[id] = true
	s.current = id
	return s.target.Begin(ctx, id)
}

// finish ends the dump. The client hears of it once it is safe.
func (s *session) finish(ctx context.Context, h pagexfer.Header) error {
	if err := s.target.Commit(ctx); err != nil {
		return err
	}
	if err := sendStatus(s.conn, 0); err != nil {
		return nil // all is there, though the client may not know
	}
	if h.Command == pagexfer.Close {
		awaitClose(s.conn)
	}
	return nil
}

// flagsOf is the flags of an entry, of legacy headers too.
func flagsOf(h pagexfer.Header) imgfile.Flags {
	switch h.Command {
	case pagexfer.Add:
		return imgfile.Present
	case pagexfer.Hole:
		return imgfile.Parent
	default:
		return imgfile.Flags(h.Flags)
	}
}

func flag(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// checkFlags refuses flags that say nothing, or two things.
func checkFlags(f imgfile.Flags, lazyAlone bool) error {
	switch f {
	case imgfile.Present, imgfile.Present | imgfile.Lazy, imgfile.Parent, imgfile.Parent | imgfile.Lazy:
		return nil
	case imgfile.Lazy:
		if lazyAlone {
			return nil
		}
	}
	return fmt.Errorf("%w: flags %#x do not say where the pages are", pagexfer.ErrProtocol, uint32(f))
}
