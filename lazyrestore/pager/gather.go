package pager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
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
	u      *uffd.FD
	target Target
	maps   []page.Mapping
	done   chan error // told once what became of it
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
	m, err := r.journal.arrive(r.world, a.u.Fd(), a.target, a.maps)
	if err != nil {
		return err
	}
	var s *space
	if i := slices.IndexFunc(r.expected, func(s *space) bool { return s.model == m }); i >= 0 {
		s = r.expected[i]
		r.expected = slices.Delete(r.expected, i, i+1)
		s.u, s.mem = a.u, orderly{a.u, m}
		s.settleGone(r.table, &r.world.removed)
	} else {
		s = newSpace(r.table, m, a.u, a.u, nil)
		for i := range r.opened {
			r.loseIn(s, r.opened[i].Load())
		}
	}
	all := append(slices.Clone(*r.spaces.Load()), s)
	r.spaces.Store(&all)
	r.log.Debug("serving a process", "space", m.id, "pid", m.pid)
	if !r.session.forming.Load() {
		r.wakeBackground()
	}
	r.kicks.Add(1)
	return nil
}

// arrive enters the process target with the userfaultfd fd into w and the journal:
// as the one that was expected, or with maps as one more.
func (j *journal) arrive(w *world, fd int, target Target, maps []page.Mapping) (*model, error) {
	if i := slices.IndexFunc(w.spaces, func(m *model) bool { return m.fd < 0 && m.pid == target.Pid }); i >= 0 {
		if err := j.room(w); err != nil {
			return nil, err
		}
		m := w.spaces[i]
		m.fd, m.taken = fd, target.Taken
		j.came(m.id, fd)
		return m, nil
	}
	l, err := newLayout(maps)
	if err != nil {
		return nil, err
	}
	m := w.add(fd, target.Pid, l)
	m.taken = target.Taken
	if err := j.compact(w); err != nil {
		w.spaces = slices.DeleteFunc(w.spaces, func(o *model) bool { return o == m })
		return nil, err
	}
	return m, nil
}

// Expect says that a process will be attached whose missing memory maps
// describes: all that can be done for it before it is there is done then. The
// maps that Attach is given for that pid do not count. It is for pagers with
// Options.Gather, before ServeAttached is called.
func (p *Pager) Expect(pid int, maps []page.Mapping) error {
	l, err := newLayout(maps)
	if err != nil {
		return fmt.Errorf("pager: process %d: %w", pid, err)
	}
	if err := p.begun(); err != nil {
		return fmt.Errorf("pager: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.session != nil || p.over || p.attached.journal.isLeft() {
		return errors.New("pager: it serves already")
	}
	p.attached.world.add(-1, pid, l)
	if err := p.attached.journal.compact(p.attached.world); err != nil {
		return fmt.Errorf("pager: process %d: %w", pid, err)
	}
	return nil
}

// Serving is closed once processes that are attached are served at once.
func (p *Pager) Serving() <-chan struct{} { return p.serving }

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
func (p *Pager) attachMore(u *uffd.FD, target Target, maps []page.Mapping) error {
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
		at := p.attached
		if p.over || at.journal.isLeft() {
			return errOver
		}
		if _, err := at.journal.arrive(at.world, u.Fd(), target, maps); err != nil {
			return err
		}
		at.fds = append(at.fds, u)
		return nil
	}
	p.mu.Unlock()
	return se.arrive(&arrival{u, target, maps, make(chan error, 1)})
}

// almost is how long after a fault the reader of a tree that is being built is
// awake.
const almost = int64(5 * time.Millisecond)

// almostBuilt reports whether a process that is being built has just raised a
// fault, as one does at the end of that: then it is stopped and let go step by step,
// and runs. The reader had better not sleep meanwhile, though whoever wants its
// processor goes first: not only is it there at once for the first faults, the processor
// that it is on is awake. Those steps are changes from one thread to another, which go
// to a processor that sleeps where there is one; to wake that takes longer than the step.
// It does sleep where something waits for time to pass, which only rest looks after.
// (By perf, two processors, from CRIU's PTRACE_SEIZE to its PTRACE_DETACH, medians of 80: 0.56 ms against 0.82.)
func (r *reader) almostBuilt() bool {
	return r.session.forming.Load() && r.now()-r.lastFault.Load() < almost && len(r.later) == 0 && !r.crowded
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
