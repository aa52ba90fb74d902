package lazyrestore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/native"
	"github.com/lazyrestore/lazyrestore/lazyrestore/pager"
	"github.com/lazyrestore/lazyrestore/lazyrestore/store"
)

// Process is a restored process, a child of the calling process, and the
// pager that brings its memory. Its methods may be called concurrently.
//
// The pager runs in the calling process: while memory is missing, the end of
// the calling process makes the restored one wait at its next missing page.
type Process struct {
	pid    int
	pidfd  int
	result RestoreResult
	begin  time.Time

	pager    *pager.Pager // nil where nothing was lazy
	resident chan struct{}
	ended    chan struct{} // the pager has left
	pagerErr error         // set before ended is closed
	control  *control
	src      image.Source

	waitOnce sync.Once
	status   unix.WaitStatus
	waitErr  error
}

// Restore brings the process of the image in directory path back to life, with
// its old process id, and returns when it runs. Its memory is missing then
// (unless opts.Eager); a pager brings it, until all is there or the process
// has ended.
//
// When ctx ends before Restore returns, nothing of the process is left; later
// it has no influence.
//
// Errors: *RefusedError where this place cannot take the process;
// image.ErrDamaged and image.ErrVersion for images that cannot be read;
// *FacilityError where the kernel or the user's privileges do not suffice.
func Restore(ctx context.Context, path string, opts RestoreOptions) (*Process, error) {
	r := &restorer{begin: time.Now(), opts: &opts}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if err := r.open(ctx, path); err != nil {
		return nil, err
	}
	p, err := r.run(ctx)
	if err != nil {
		r.src.Close()
		return nil, explainRebuild(err)
	}
	return p, nil
}

// restorer is one Restore under way.
type restorer struct {
	begin time.Time
	opts  *RestoreOptions
	src   *store.Dir
	im    *image.Image
	st    *native.State
	eager *os.File

	keeper *pager.Keeper // the pager's, once that serves
	pager  *pager.Pager
}

// endKeeper ends a keeper that no pager has taken over.
func (r *restorer) endKeeper() error {
	if r.keeper == nil {
		return nil
	}
	return r.keeper.Close()
}

// open reads what the rebuild needs. The page index is not among it: the pager
// loads it while the process is being built.
func (r *restorer) open(ctx context.Context, path string) (err error) {
	if r.src, err = store.OpenDir(path); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			r.src.Close()
		}
	}()
	if r.im, err = image.Open(ctx, r.src, image.OpenOptions{Digest: r.opts.Digest}); err != nil {
		return err
	}
	b, err := r.im.ReadObject(ctx, image.ProcessObject)
	if err != nil {
		return err
	}
	if r.st, err = native.DecodeState(b); err != nil {
		return &image.DamagedError{Object: image.ProcessObject, Err: err}
	}
	if r.st.EagerBytes > 0 {
		if r.eager, err = r.src.File(image.EagerObject); err != nil {
			return &image.DamagedError{Object: image.EagerObject, Err: err}
		}
	}
	return nil
}

func (r *restorer) run(ctx context.Context) (*Process, error) {
	if r.eager != nil {
		defer r.eager.Close()
	}
	// Beside the rebuild, for which none of it is needed.
	ready := make(chan error, 1)
	go func() { ready <- r.prepare(ctx) }()
	// The new process inherits descriptors that nobody else may, whom this
	// process starts meanwhile.
	syscall.ForkLock.RLock()
	built, err := native.Rebuild(ctx, r.st, native.RebuildOptions{
		Eager:        r.eager,
		ChangedFiles: r.opts.ChangedFiles.native(),
		Stdio:        r.opts.Stdio.native(),
	})
	syscall.ForkLock.RUnlock()
	if rerr := <-ready; rerr != nil {
		if err == nil {
			built.Kill()
		}
		err = rerr
	}
	if err != nil {
		return nil, errors.Join(err, r.endKeeper())
	}
	p := &Process{
		pid: built.PID, pidfd: built.PIDFD, begin: r.begin, pager: r.pager, src: r.src,
		resident: make(chan struct{}), ended: make(chan struct{}),
	}
	p.result = RestoreResult{
		PID: built.PID, Mappings: len(r.st.VMAs), Threads: len(r.st.Threads),
		LazyBytes: r.st.LazyBytes, EagerBytes: r.st.EagerBytes, Warnings: built.Warnings,
	}
	if err := p.start(ctx, r, built); err != nil {
		return nil, err
	}
	return p, nil
}

// start sets the pager to work and lets the process go.
func (p *Process) start(ctx context.Context, r *restorer, built *native.Process) error {
	if built.UFFD == nil || p.pager == nil {
		close(p.resident)
		close(p.ended)
		if err := built.Run(); err != nil {
			built.Kill()
			return err
		}
		p.result.TTFIMicros = time.Since(p.begin).Microseconds()
		return nil
	}
	go p.serve(built, r.opts)
	if r.opts.Eager {
		select {
		case <-p.resident:
		case <-ctx.Done():
			built.Kill()
			<-p.ended
			return ctx.Err()
		}
	}
	if err := built.Run(); err != nil {
		built.Kill()
		<-p.ended
		return err
	}
	p.result.TTFIMicros = time.Since(p.begin).Microseconds()
	p.listen(r)
	return nil
}

// serve runs the pager until it has left.
func (p *Process) serve(built *native.Process, opts *RestoreOptions) {
	defer close(p.ended)
	// The pager belongs to the process, not to the call that restored it.
	err := p.pager.Serve(context.Background(), built.UFFD, pager.Target{Pid: p.pid, PidFD: p.pidfd}, built.Mappings)
	if err != nil {
		p.pagerErr = fmt.Errorf("pager of process %d: %w", p.pid, err)
		opts.Logger.Error("pager ended", "pid", p.pid, "error", err)
		return
	}
	close(p.resident)
}

// prepare makes what can be made before there is a process to serve: the
// keeper, the pager with its index. It also looks whether there is memory
// enough.
func (r *restorer) prepare(ctx context.Context) error {
	if err := checkMemory(r.st); err != nil {
		return err
	}
	if r.st.LazyBytes == 0 {
		return nil
	}
	opts := pager.Options{Workers: r.opts.Workers, HugePages: r.st.Huge, Logger: r.opts.Logger}
	if r.opts.Background == BackgroundNone {
		opts.Background = pager.None
	}
	var err error
	if r.keeper, err = pager.StartKeeper(); err != nil {
		return err
	}
	opts.Keeper = r.keeper
	if r.pager, err = pager.New(r.im, opts); err != nil {
		return err
	}
	go func() { _ = r.pager.Prepare(ctx) }() // Serve tells what is wrong
	return nil
}

// listen opens the control socket. A process whose pager cannot be asked runs
// all the same; only a checkpoint of it has to wait until it is resident.
func (p *Process) listen(r *restorer) {
	c, err := listenControl(p.pid, func(word string) controlReply {
		reply := controlReply{PID: p.pid, Image: r.src.Path(), Digest: r.im.Digest(), Stats: p.Stats()}
		if word == askMissing {
			for _, m := range p.pager.Remaining() {
				reply.Missing = append(reply.Missing, [3]uint64{uint64(m.Start), m.Len(), uint64(m.Image)})
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
