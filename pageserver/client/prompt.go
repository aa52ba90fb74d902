package client

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

const (
	// soon is how long ReadSoon waits. On a network where that is not enough it
	// is not tried for restTime after lateTries.
	soon      = 400 * time.Microsecond
	lateTries = 6
	restTime  = time.Second
	// lookTime is how long the caller looks for a reply again and again before
	// it sleeps: to be woken costs a processor that went idle more than a short
	// round trip (two processors, loopback, 36 KB: some 60 µs). Where replies
	// take longer, only each lookAgain-th is looked for. Not none: to sleep
	// alone may make them take longer, and nobody would look ever again.
	lookTime  = 200 * time.Microsecond
	lookAgain = 8
	// mostSoon bounds what is asked for in this way: a fault wants one frame.
	mostSoon = 256 << 10
	// mostPassed is how much payload that nobody waits for is read at a time.
	mostPassed = 16 << 10
)

// prompt is a third connection, which has no reader: who asks over it looks
// for the reply himself until it is there, and no thread has to be woken, which
// is most of what a short round trip costs (two processors, 36 KB: 250 µs and
// more through a lane while the machine is busy). Nor does Go's poller know of
// it, the thread of which would wake with each reply, for nothing.
//
// A reply that does not come in time is passed over when it does; the request
// is made again by a lane. So nothing has to be mended here: a connection that
// fails is closed, and another one opened.
type prompt struct {
	busy    sync.Mutex // held by whoever uses it or opens it
	opening atomic.Bool

	// Guarded by busy.
	server *server // nil: there is no connection
	fd     int     // of the connection
	slow   int     // replies in a row that were not there within lookTime
	last   uint32  // id of a request
	head   [wire.HeaderSize + wire.DataSize]byte
	have   int    // bytes of head
	skip   int    // payload to come that nobody waits for
	passed []byte // where that goes
	late   int    // replies in a row that were
	until  time.Time
	within time.Duration // instead of soon; 0: soon
}

var _ image.Prompt = (*Client)(nil)

var (
	errLate   = errors.New("not in time")
	errStream = errors.New("the connection is of no use")
)

// ReadSoon is image.Prompt's.
func (c *Client) ReadSoon(object string, p []byte, off int64) (bool, error) {
	if err := c.check(object, len(p), off); err != nil {
		return false, err
	}
	x := &c.prompt
	if len(p) == 0 || len(p) > mostSoon || c.reject.check(c.addr, object, off, len(p)) != nil || !x.busy.TryLock() {
		return false, nil
	}
	defer x.busy.Unlock()
	now := time.Now()
	if now.Before(x.until) {
		return false, nil
	}
	if x.server == nil {
		c.openPrompt()
		return false, nil
	}
	err := x.read(object, p, off, now)
	x.took(time.Since(now))
	switch {
	case err == nil:
		x.late = 0
		c.traffic[image.Demand].Add(uint64(len(p)))
		c.reject.note(&request{object: object, off: off, p: p, size: len(p), n: len(p), server: x.server})
		return true, nil
	case errors.Is(err, errLate):
		if x.late++; x.late >= lateTries {
			x.until = now.Add(restTime)
		}
	default:
		x.close()
		x.until = now.Add(restTime)
	}
	return false, nil
}

// read asks for a range, now, and looks for the reply until it is too late. p is
// not written to any more when it returns.
func (x *prompt) read(object string, p []byte, off int64, now time.Time) error {
	deadline := now.Add(cmp.Or(x.within, soon))
	look := now
	if x.looks() && min(runtime.NumCPU(), runtime.GOMAXPROCS(0)) > 1 {
		look = now.Add(lookTime)
	}
	x.last = max(x.last+1, openID+1)
	out := wire.Read{Image: imageID, Length: uint32(len(p)), Offset: off, Object: object}.Append(nil, x.last, 0)
	if n, err := unix.Write(x.fd, out); err != nil || n < len(out) {
		return errStream
	}
	got, left := 0, 0
	for last := false; !last || left > 0; {
		room := x.room(p[got:got+left], left)
		n, err := unix.Read(x.fd, room)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			if time.Now().Before(look) {
				// The server may be on this machine, and on this processor.
				_, _, _ = unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
				continue
			}
			if !readable(x.fd, time.Until(deadline)) {
				x.skip += left
				return errLate
			}
			continue
		case err != nil || n <= 0:
			return errStream
		case x.skip > 0:
			// What nobody waits for may come without end.
			if x.skip -= n; !time.Now().Before(deadline) {
				return errLate
			}
			continue
		case left > 0:
			got, left = got+n, left-n
			continue
		}
		if x.have += n; x.have < len(x.head) {
			continue
		}
		x.have = 0
		m, err := wire.NewDecoder(bytes.NewReader(x.head[:]), wire.Client, len(x.head)).Next()
		if err != nil || m.Type != wire.TypeData {
			return errStream // whatever it is, a lane will hear it too
		}
		if m.ID != x.last {
			if x.skip = m.Data.Length; !time.Now().Before(deadline) {
				return errLate
			}
			continue
		}
		left, last = m.Data.Length, m.Flags&wire.FlagLast != 0
		if m.Data.Offset != off+int64(got) || left > len(p)-got || left == 0 && !last {
			return errStream
		}
	}
	if got < len(p) {
		return errStream
	}
	return nil
}

// took notes how long a reply took, for looks.
func (x *prompt) took(d time.Duration) {
	if x.slow++; d < lookTime {
		x.slow = 0
	}
}

// looks reports whether the next reply is worth looking for.
func (x *prompt) looks() bool { return x.slow%lookAgain == 0 }

// room is where the next bytes belong.
func (x *prompt) room(payload []byte, left int) []byte {
	switch {
	case x.skip > 0:
		if x.passed == nil {
			x.passed = make([]byte, mostPassed)
		}
		return x.passed[:min(x.skip, len(x.passed))]
	case left > 0:
		return payload
	}
	return x.head[x.have:]
}

// close lets go of the connection. The caller holds busy.
func (x *prompt) close() {
	if x.server != nil {
		_ = unix.Close(x.fd)
	}
	x.server = nil
	x.have, x.skip, x.late, x.slow = 0, 0, 0, 0
}

// openPrompt has a connection opened, to the server that the demand lane is
// connected to, unless that is being done.
func (c *Client) openPrompt() {
	x := &c.prompt
	l := c.lanes[image.Demand]
	l.mu.Lock()
	k := l.conn
	if l.closed || k == nil || !k.opened || !x.opening.CompareAndSwap(false, true) {
		l.mu.Unlock()
		return
	}
	c.running.Go(func() {
		defer x.opening.Store(false)
		fd, err := c.greet(c.ctx, k.server)
		if err != nil {
			c.opts.Logger.Debug("no connection for prompt reads", "server", k.server.String(), "error", err)
		}
		x.busy.Lock()
		defer x.busy.Unlock()
		if err != nil {
			x.until = time.Now().Add(restTime)
			return
		}
		x.fd, x.server = fd, k.server
	})
	l.mu.Unlock()
}

// greet opens a connection and the image on it. The descriptor is the caller's;
// it does not block.
func (c *Client) greet(ctx context.Context, s *server) (int, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.opts.Timeout, ErrSilent)
	defer cancel()
	conn, err := c.opts.Dial(ctx, s.Server)
	if err != nil {
		return -1, err
	}
	f, ok := conn.(*os.File)
	if !ok {
		return -1, errors.Join(fmt.Errorf("a %T has no descriptor", conn), conn.Close())
	}
	stop := context.AfterFunc(ctx, func() { _ = f.Close() })
	err = c.greeted(f, s)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		return -1, errors.Join(err, f.Close())
	}
	return unpolled(f)
}

// unpolled closes f and gives another descriptor of what it was, of which
// Go's poller does not know.
func unpolled(f *os.File) (int, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, true) // which Fd has undone
	}
	if err = errors.Join(err, f.Close()); err != nil && fd >= 0 {
		_ = unix.Close(fd)
	}
	return fd, err
}

func (c *Client) greeted(f *os.File, s *server) error {
	k := newConn(c.lanes[image.Demand], s, f)
	if _, err := f.Write(k.greeting(nil)); err != nil {
		return err
	}
	dec := wire.NewDecoder(f, wire.Client, readBuffer)
	for {
		m, err := dec.Next()
		if err != nil {
			return err
		}
		switch m.Type {
		case wire.TypeHello:
			continue
		case wire.TypeOpened:
		default:
			return fmt.Errorf("%w: %v", errProtocol, m.Type)
		}
		o, err := wire.ParseOpened(m.Body)
		if err == nil {
			err = c.accept(o)
		}
		if err == nil && dec.Buffered() > 0 {
			err = errProtocol
		}
		return err
	}
}

// readable waits until there is something to read.
func readable(fd int, atMost time.Duration) bool {
	if atMost <= 0 {
		return false
	}
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	limit := unix.NsecToTimespec(int64(atMost))
	n, err := unix.Ppoll(fds, &limit, nil)
	return n > 0 || errors.Is(err, unix.EINTR)
}
