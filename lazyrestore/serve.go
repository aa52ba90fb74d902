package lazyrestore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/native"
	"github.com/lazyrestore/lazyrestore/lazyrestore/pager"
)

// How the pager of a restored process is set to work, and the process is let run.

// attach sets the pager to work, while the process is still being built: it is
// there for the first fault. What it returns waits until the pager has left a
// process that is killed.
func (p *Process) attach(r *restorer, built *native.Process) (abandon func(), err error) {
	if <-r.ready; r.readyErr != nil || r.pager == nil {
		return nil, r.readyErr
	}
	defer r.opts.Trace.Begin(r.opts.Trace.Row("lazyrestore", "prepare"), "attach the pager")()
	r.pager.Keep(r.keeper)
	target := pager.Target{Pid: built.PID, PidFD: built.PIDFD}
	if err := r.pager.Attach(built.UFFD, target, built.Mappings); err != nil {
		return nil, err
	}
	p.pager = r.pager
	u := built.UFFD
	// The pager belongs to the process, not to the call that restored it.
	go p.serve(r.opts, target.Pid, func() error { return r.pager.Serve(context.Background(), u, target, built.Mappings) })
	return func() {
		<-p.ended
		_ = r.discard() // there is nothing left to keep for a successor
	}, nil
}

// start lets the process go, which the pager serves already.
func (p *Process) start(ctx context.Context, r *restorer, built *native.Process) error {
	if p.pager == nil {
		close(p.resident)
		close(p.ended)
		if err := p.let(r, built); err != nil {
			built.Kill()
			return errors.Join(err, r.discard())
		}
		go p.settle(nil)
		return nil
	}
	if r.opts.Progress != nil {
		go p.report(r.opts.Progress)
	}
	if r.opts.Eager {
		close(r.running)
		r.running = nil
		r.giveSlackBack()
		filled := r.opts.Trace.Begin(0, "wait until all is resident")
		select {
		case <-p.resident:
		case <-p.ended: // resident is closed before, if it came to that
			if p.pagerErr != nil {
				built.Kill()
				return p.pagerErr
			}
		case <-p.pager.Lost():
			built.Kill()
			return p.pagerErr
		case <-ctx.Done():
			built.Kill()
			return context.Cause(ctx)
		}
		filled()
	}
	if err := p.let(r, built); err != nil {
		built.Kill()
		return err
	}
	p.listen(r)
	go p.settle(p.control)
	return nil
}

// settle gives up the image and the control socket once all memory is there, however long the process lives on. A checkpoint
// would look for the image, which may be gone by then.
func (p *Process) settle(control *control) {
	if <-p.ended; p.pagerErr == nil {
		control.close()
		_ = p.closeSource() // Close tells of it
	}
}

// let lets the process go.
func (p *Process) let(r *restorer, built *native.Process) error {
	if r.running != nil {
		close(r.running)
		r.running = nil
	}
	if r.opts.Terminal != nil && r.st.Session.Terminal && !r.opts.PIDNamespace {
		r.opts.Terminal.first(built.PID, r.st.Modes)
	}
	detached := r.opts.Trace.Begin(0, "detach")
	err := built.Run(func() {
		detached()
		r.opts.Trace.Mark(0, "the process runs")
		p.result.TTFIMicros = time.Since(p.begin).Microseconds()
	})
	if err == nil {
		built.Release()
		r.giveSlackBack()
		r.opts.Logger.Info("the process runs", "pid", built.PID, "threads", p.result.Threads, "mappings", p.result.Mappings,
			"lazy_bytes", p.result.LazyBytes, "eager_bytes", p.result.EagerBytes, "took", time.Since(p.begin))
	} else {
		r.opts.Terminal.TakeBack(true)
	}
	return err
}

// giveSlackBack is for when nobody waits for the process to run any more.
func (r *restorer) giveSlackBack() {
	if err := pager.GiveSlackBack(); err != nil {
		r.opts.Logger.Warn("the pager keeps a long timer slack", "error", err)
	}
}

// serve runs the pager until it has left.
func (p *Process) serve(opts *RestoreOptions, pid int, serve func() error) {
	defer close(p.ended)
	if err := serve(); err != nil {
		p.pagerErr = fmt.Errorf("pager of process %d: %w", pid, err)
		opts.Logger.Error("pager ended", "pid", pid, "error", err)
		if errors.As(err, new(*pager.LostError)) {
			p.pagerErr = fmt.Errorf("%w: %w", ErrSourceLost, p.pagerErr)
		}
		return
	}
	stats := p.pager.Stats()
	opts.Logger.Info("the pager leaves", "pid", pid, "faults", stats.Faults, "installed_bytes", stats.InstalledBytes, "missing_bytes", stats.MissingBytes)
	close(p.resident)
}

// listen opens the control socket. A process whose pager cannot be asked runs
// all the same; only a checkpoint of it has to wait until it is resident.
func (p *Process) listen(r *restorer) {
	c, err := listenControl(p.pid, func(word string) controlReply {
		reply := controlReply{PID: p.pid, Image: r.path, Digest: r.im.Digest(), Stats: p.Stats()}
		if word == askMissing {
			missing, parts := p.missing()
			for _, m := range missing {
				reply.Missing = append(reply.Missing, [3]uint64{uint64(m.Start), m.Len(), uint64(m.Image)})
			}
			for _, part := range parts {
				reply.Parted = append(reply.Parted, [5]uint64{uint64(part.Start), part.Len(), uint64(part.Object.Start), part.Object.Dev, part.Object.Inode})
			}
			for _, r := range p.pager.Unknown() {
				reply.Unknown = append(reply.Unknown, r.String())
			}
		}
		return reply
	})
	if err != nil {
		r.opts.Logger.Warn("no control socket", "error", err)
		return
	}
	p.control = c
}
