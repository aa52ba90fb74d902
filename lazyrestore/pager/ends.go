package pager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd"
)

// How a pager ends that has nothing to serve with, or nobody to serve: the
// index cannot be had, the process has ended before it came, or never runs.

// errEnded means that all who were attached have ended.
var errEnded = errors.New("the process has ended")

// load loads the index, for which whoever is attached waits: as long as it
// takes, or until all of them have ended.
func (p *Pager) load(ctx context.Context) error {
	inner, cancel := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	watch := time.AfterFunc(tick, func() {
		defer close(watched)
		for !p.allEnded() {
			if sleep(inner, tick) != nil {
				return
			}
		}
		cancel(errEnded)
	})
	defer func() {
		cancel(nil)
		if !watch.Stop() {
			<-watched
		}
	}()
	rt := p.retries()
	err := rt.patiently(inner, func() error { return p.Prepare(inner) })
	if err != nil && errors.Is(context.Cause(inner), errEnded) {
		return errEnded
	}
	return err
}

// notLoaded makes an end without an index: without it there is no page that
// could be brought.
func (p *Pager) notLoaded(ctx context.Context, err error) error {
	if !errors.Is(err, errEnded) {
		hopeless := p.opts.OnLost != Wait || errors.Is(err, image.ErrDamaged)
		target := p.attached.target
		if !hopeless || ctx.Err() != nil || target.PidFD < 0 {
			return err
		}
		p.opts.Logger.Error("all pages are lost, and the process is killed", "pid", target.Pid, "error", err)
		p.lost.add(err)
		if err := unix.PidfdSendSignal(target.PidFD, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("pager: kill process %d: %w", target.Pid, err)
		}
		for pause := time.Millisecond; !p.allEnded(); pause = min(2*pause, tick) {
			if err := sleep(ctx, pause); err != nil {
				return err
			}
		}
	}
	if err := p.end(); err != nil {
		return fmt.Errorf("pager: %w", err)
	}
	return p.lost.err()
}

// hasEnded reports whether the process of u has ended, or has another address
// space.
func hasEnded(u *uffd.FD) bool {
	return errors.Is(u.WriteProtect(probeAddr, page.Size, 0), unix.ESRCH)
}

// allEnded reports whether all who were attached have ended, and no more come.
// It is for pagers that have no session.
func (p *Pager) allEnded() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.opts.Gather && !p.gathered && !p.abandoned {
		return false
	}
	return !p.holdsLocked()
}

// holdsLocked reports whether anyone who was attached, or is held, lives. Called
// with mu held.
func (p *Pager) holdsLocked() bool {
	if slices.ContainsFunc(p.held, lives) {
		return true
	}
	if p.attached == nil {
		return false
	}
	if p.session != nil { // with the children that they have forked
		return slices.ContainsFunc(*p.session.spaces.Load(), func(s *space) bool { return lives(s.u) })
	}
	return slices.ContainsFunc(p.attached.fds, lives)
}

// Hold has the pager hold userfaultfds that it is not to serve, as those of processes
// that were attached, until Discard closes them, or Serve: it returns only when those processes have ended.
func (p *Pager) Hold(fds ...*uffd.FD) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = append(p.held, fds...)
}

// Holds reports whether a process that was attached, taken over or held lives: its
// userfaultfd must stay open as long as it misses pages. It is for pagers that
// do not serve.
func (p *Pager) Holds() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.holdsLocked()
}

// awaitHeld waits until the processes have ended that are held and not served: what they miss would
// be zeros. Nothing tells of it.
func (p *Pager) awaitHeld(ctx context.Context) error {
	for pause := time.Millisecond; p.holdsUnserved(); pause = min(2*pause, tick) {
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
	return nil
}

func (p *Pager) holdsUnserved() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.held, lives)
}

// lives reports whether u is open, and its process lives.
func lives(u *uffd.FD) bool { return u.Fd() >= 0 && !hasEnded(u) }

func (p *Pager) isOver() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.over
}

// end gives everything back, once nobody is served any more.
func (p *Pager) end() error {
	p.prepare.Lock()
	defer p.prepare.Unlock()
	p.mu.Lock()
	was, at, se, held := p.over, p.attached, p.session, p.held
	p.over = true
	p.mu.Unlock()
	if was {
		return nil
	}
	if p.table != nil {
		p.table.free()
	}
	for _, u := range held {
		_ = u.Close()
	}
	if at != nil {
		for _, u := range at.fds {
			_ = u.Close() // unless it was let go
		}
		at.journal.close()
	}
	if se != nil {
		for _, s := range *se.spaces.Load() {
			_ = s.u.Close() // those of forked children
		}
	}
	if p.opts.Keeper == nil {
		return nil
	}
	return p.opts.Keeper.Close()
}

// Discard gives up a pager whose Serve was not called, or has returned: it waits
// for a Prepare under way, frees the index, closes the userfaultfds that it was
// given, and ends the keeper. As long as a process lives that was attached, taken
// over or held it does no more than to let a successor have that, for the keeper may be the only one who holds it.
func (p *Pager) Discard() error {
	if p.Holds() {
		p.leave()
		return nil
	}
	return p.end()
}
