package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// Pauses between two attempts to connect to one server.
const (
	firstPause = 50 * time.Millisecond
	lastPause  = 2 * time.Second
	// patience is how long an attempt may have to wait for the pause to be
	// over; a server that may not be asked for longer is passed over.
	patience = lastPause + lastPause/2
)

// servers are those of the address, with what is known of each.
type servers struct {
	mu     sync.Mutex
	list   []*server // the list never changes, what it points to is guarded by mu
	latest int       // guarded by mu: index of the one that answered last
}

// A server is one of them. What is not its address is guarded by servers.mu.
type server struct {
	Server
	index    int
	failures int       // in a row
	next     time.Time // when it may be asked again
	err      error     // why it was not available
	crawled  int       // how often it was left because it gave next to nothing
	rejects  int       // how often it gave damaged bytes
	blamed   int       // 0 if it never did; who did so last has the largest number
}

func newServers(list []Server) *servers {
	ss := &servers{}
	for i, s := range list {
		ss.list = append(ss.list, &server{Server: s, index: i})
	}
	return ss
}

// order is the servers in the order in which to try them: those that just
// failed after those that did not, those that gave
// damaged bytes after others, who did so last at the end, the one that answered last first.
func (ss *servers) order() []*server {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	now := time.Now()
	list := slices.Clone(ss.list)
	failing := func(s *server) int {
		if s.next.After(now) {
			return s.failures
		}
		return 0
	}
	slices.SortStableFunc(list, func(a, b *server) int {
		n := len(ss.list)
		return cmp.Or(
			cmp.Compare(failing(a), failing(b)),
			cmp.Compare(a.blamed, b.blamed),
			cmp.Compare((a.index-ss.latest+n)%n, (b.index-ss.latest+n)%n),
		)
	})
	return list
}

// better reports whether a is to be preferred to b, of which both have the image open.
func (ss *servers) better(a, b *server) bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return a.blamed < b.blamed
}

// turn waits until s may be asked, and reports false where that is too long.
func (ss *servers) turn(ctx context.Context, s *server) bool {
	ss.mu.Lock()
	pause := time.Until(s.next)
	ss.mu.Unlock()
	if pause <= 0 {
		return true
	}
	if pause > patience {
		return false
	}
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// failed notes that s is not available, and why.
func (ss *servers) failed(s *server, err error) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	pause := min(firstPause<<min(s.failures, 10), lastPause)
	// Many clients that lose a server at once do not come back at once.
	pause += time.Duration(rand.Int64N(int64(pause) / 2))
	s.failures++
	s.err = err
	s.next = time.Now().Add(pause)
}

// opened notes that s has the image open.
func (ss *servers) opened(s *server) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	ss.latest = s.index
}

// well notes that s answers.
func (ss *servers) well(s *server) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s.failures, s.err, s.next = 0, nil, time.Time{}
}

// damaging notes that s gave damaged bytes, and reports whether there is another one. That
// is then asked first, whatever it gave before: what one has damaged is not what the other has.
func (ss *servers) damaging(s *server) bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s.rejects++
	for _, o := range ss.list {
		s.blamed = max(s.blamed, o.blamed+1)
	}
	return len(ss.list) > 1
}

// up is the servers that have not failed, or have answered since.
func (ss *servers) up() []*server {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(ss.list), func(s *server) bool { return s.failures > 0 })
}

var errNotTried = errors.New("it was not tried again yet")

// unavailable is the error that none can be had.
func (ss *servers) unavailable(addr Address) error {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	e := &UnavailableError{Address: addr}
	for _, s := range ss.list {
		err := s.err
		if err == nil {
			err = errNotTried
		}
		if s.rejects > 0 {
			err = fmt.Errorf("%w (and it gave damaged bytes, %d times)", err, s.rejects)
		}
		e.Servers = append(e.Servers, ServerError{s.Server, err})
	}
	return e
}
