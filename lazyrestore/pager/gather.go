package pager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/uffd"
)

// A tree of processes comes to a pager one by one, while those that came first
// may already touch their memory: with Options.Gather, Serve is called before
// all are there. Until Gathered nothing is installed that nobody waits for,
// since a process whose mappings are still being made has not registered all
// of them: a page of such a mapping is not gone, it has not come yet.

// errOver means that nothing is served any more.
var errOver = errors.New("the pager has ended")

// An arrival is a process that was attached while Serve runs.
type arrival struct {
	u    *uffd.FD
	pid  int
	l    layout
	done chan error // told once what became of it
}

// arrive hands a to the reader and waits until it is served.
func (se *session) arrive(a *arrival) error {
	select {
	case se.arrivals <- a:
	case <-se.over:
		return errOver
	}
	se.kick()
	select {
	case err := <-a.done:
		return err
	case <-se.over:
		return errOver
	}
}

// welcome begins to serve who has arrived.
func (r *reader) welcome() {
	for {
		select {
		case a := <-r.arrivals:
			a.done <- r.admit(a)
		default:
			return
		}
	}
}

// admit writes a down and serves it.
func (r *reader) admit(a *arrival) error {
	m := r.world.add(a.u.Fd(), a.pid, a.l)
	if err := r.journal.compact(r.world); err != nil {
		r.world.spaces = slices.DeleteFunc(r.world.spaces, func(o *model) bool { return o == m })
		return err
	}
	s := newSpace(r.table, m, a.u, a.u, nil)
	all := append(slices.Clone(*r.spaces.Load()), s)
	r.spaces.Store(&all)
	r.log.Debug("serving a process", "space", m.id, "pid", a.pid, "missing", s.missingBytes(r.table))
	r.wakeBackground()
	r.kicks.Add(1)
	return nil
}

// Gathered says that all processes have been attached and are built: pages
// come in the background from now on, and Serve returns once none is missing.
// It is for pagers with Options.Gather, and may be called again.
func (p *Pager) Gathered() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gathered = true
	if p.session != nil {
		p.session.gathering.Store(false)
		p.session.forming.Store(false)
		p.session.wakeBackground()
		p.session.kick()
	}
}

// ServeAttached is Serve for the processes that Attach was called for, and
// those that it will be called for.
func (p *Pager) ServeAttached(ctx context.Context) error {
	if err := p.begun(); err != nil {
		return fmt.Errorf("pager: %w", err)
	}
	return p.serve(ctx)
}

// begun makes sure that there is a journal to write processes down in.
func (p *Pager) begun() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.attached != nil {
		return nil
	}
	return p.attach(&world{}, nil, Target{PidFD: -1})
}

// attachMore is Attach for one process of several.
func (p *Pager) attachMore(u *uffd.FD, target Target, l layout) error {
	if err := p.begun(); err != nil {
		return err
	}
	if err := unix.SetNonblock(u.Fd(), true); err != nil {
		return fmt.Errorf("userfaultfd: %w", err)
	}
	p.mu.Lock()
	se := p.session
	if se == nil {
		defer p.mu.Unlock()
		if p.over {
			return errOver
		}
		at := p.attached
		at.world.add(u.Fd(), target.Pid, l)
		at.fds = append(at.fds, u)
		return at.journal.compact(at.world)
	}
	p.mu.Unlock()
	return se.arrive(&arrival{u, target.Pid, l, make(chan error, 1)})
}

// waitGathered has a background worker wait until it is wanted. It reports
// whether it had to.
func (se *session) waitGathered(ctx context.Context) bool {
	if !se.forming.Load() {
		return false
	}
	select {
	case <-se.more:
	case <-ctx.Done():
	}
	return true
}

// unserved is how many of the processes that were attached still miss pages.
// Children that they have forked do not count.
func (se *session) unserved() (n int) {
	for _, s := range *se.spaces.Load() {
		if s.attached() {
			n++
		}
	}
	return n
}

// attached reports whether s is a process that was attached, not a forked
// child.
func (s *space) attached() bool { return s.id == 0 || s.pid != 0 }

// settleResident notes that all that was attached is resident.
func (p *Pager) settleResident(se *session) {
	p.stats.resident.Store(int64(time.Since(se.start)))
	close(p.resident)
}

// Abandon says that no more processes come, and that those that are there may
// never be built: they are served when they touch pages, until they end.
func (p *Pager) Abandon() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.abandoned = true
	if p.session != nil {
		p.session.gathering.Store(false)
		p.session.kick()
	}
}
