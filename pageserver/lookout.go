package pageserver

import (
	"errors"
	"io"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lookTime is for how long who has answered a demand read looks for the
	// next one again and again before he sleeps. A program that touches one
	// missing page after another asks again 50 to 150 µs later, and to be woken
	// then takes Go longer than to answer (two processors, loopback, 36 KB:
	// 60 µs of a touch). With 100 µs it was sometimes enough, and sometimes not.
	lookTime = 250 * time.Microsecond
	// nearTime is after how long a request has come soon where who waits for it
	// sleeps: he has to be woken too.
	nearTime = 2 * lookTime
)

// A lookout is what a connection's reader knows about when the next request
// may come.
type lookout struct {
	answered time.Time // a demand read, and nothing has been waited for since
	near     bool      // the latest request that followed one came soon
}

// Read reads from the connection, for its decoder.
func (c *conn) Read(p []byte) (n int, err error) {
	since := c.lookout.answered
	if since.IsZero() || c.raw == nil {
		return c.nc.Read(p)
	}
	c.lookout.answered = time.Time{}
	limit := nearTime
	if c.lookout.near && c.server.mayLook() {
		n, err = c.look(p, since.Add(lookTime))
		c.server.looking.Add(-1)
		limit = lookTime
	} else {
		n, err = c.nc.Read(p)
	}
	c.lookout.near = time.Since(since) < limit
	return n, err
}

// mayLook reports whether a goroutine may keep a processor busy by looking, and
// counts it until who looked is done. One processor is left to others, and
// background is more urgent than a read that may not come.
func (s *Server) mayLook() bool {
	if int(s.looking.Add(1)) < min(runtime.NumCPU(), runtime.GOMAXPROCS(0)) && s.turns.idle() {
		return true
	}
	s.looking.Add(-1)
	return false
}

// look is Read that looks until a time, and sleeps then.
func (c *conn) look(p []byte, until time.Time) (n int, err error) {
	late := false
	waited := c.raw.Read(func(fd uintptr) (done bool) {
		for {
			n, err = unix.Read(int(fd), p)
			switch {
			case errors.Is(err, unix.EINTR):
			case !errors.Is(err, unix.EAGAIN):
				return true
			case late || !time.Now().Before(until) || !c.server.turns.idle():
				late = true // the next call is that of the poller
				return false
			default:
				// Who is to say what is looked for may be on the same processor.
				_, _, _ = unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
			}
		}
	})
	switch {
	case waited != nil:
		return 0, waited
	case err != nil:
		return 0, err
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}
