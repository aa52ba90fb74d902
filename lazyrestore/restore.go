package lazyrestore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/native"
	"github.com/lazyrestore/lazyrestore/lazyrestore/pager"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
	"github.com/lazyrestore/lazyrestore/pageserver/client"
)

// Process is a restored process, a child of the calling process, and the
// pager that brings its memory. Its methods may be called concurrently, save that
// Close comes last.
//
// The pager runs in the calling process: while memory is missing, the end of
// the calling process makes the restored one wait at its next missing page.
type Process struct {
	pid    int
	pidfd  int
	space  *proc.PIDNamespace // of its own; nil: it has none
	result RestoreResult
	begin  time.Time

	deathSignal bool // it asks for one

	pager    *pager.Pager // nil where nothing was lazy
	resident chan struct{}
	ended    chan struct{} // the pager has left
	pagerErr error         // set before ended is closed
	control  *control
	src      image.Source
	srcOnce  sync.Once // closes src
	srcErr   error

	waitOnce sync.Once
	status   unix.WaitStatus
	waitErr  error
}

// Restore brings the process of the image at path back to life, with its old
// process id (see RestoreOptions.PIDNamespace), and returns when all its threads
// run. path is a directory or an address of page servers (OpenSource). The memory
// of the process is missing then (unless opts.Eager); a pager brings it, until all
// is there or the process has ended.
//
// When ctx ends before Restore returns, nothing of the process is left; later
// it has no influence.
//
// Errors: *RefusedError where this place cannot take the process;
// image.ErrDamaged and image.ErrVersion for images that cannot be read;
// ErrSourceLost where no page server gives the image;
// native.ErrTouched where other processes touched its memory in each of four tries;
// *FacilityError where the kernel or the user's privileges do not suffice.
func Restore(ctx context.Context, path string, opts RestoreOptions) (*Process, error) {
	r := &restorer{begin: time.Now(), opts: &opts}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	var err error
	if r.path, err = place(path); err != nil {
		return nil, err
	}
	defer opts.Trace.Begin(0, "restore")()
	r.src, err = openSource(ctx, path, opts.Source, client.Options{Digest: opts.Digest, Whole: true, Logger: opts.Logger})
	if err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		p, err := r.run(ctx)
		if err == nil {
			return p, nil
		}
		if !r.mayMend(ctx, err, try) {
			r.src.Close()
			return nil, explainRebuild(lost(err))
		}
		opts.Logger.Warn("restore begins anew", "error", err)
		select {
		case <-time.After(againPause << (try - 1)):
		case <-ctx.Done():
			r.src.Close()
			return nil, context.Cause(ctx)
		}
		r = &restorer{begin: r.begin, opts: r.opts, src: r.src, path: r.path}
	}
}

// mostTries is how often a restore is begun.
const mostTries = 4

// againPause is how long at first the next try waits: who looks at the memory of all
// processes goes on to the next, and what every server gave damaged may be asked for again.
const againPause = 25 * time.Millisecond

// mayMend reports whether a failed restore is worth another try: the source
// has been told what was damaged, and may have it whole elsewhere; or somebody
// else had a hand in it.
func (r *restorer) mayMend(ctx context.Context, err error, try int) bool {
	if ctx.Err() != nil || try == mostTries {
		return false
	}
	if errors.Is(err, native.ErrTouched) {
		return true
	}
	_, elsewhere := r.src.(image.Rejecter)
	return elsewhere && (errors.Is(err, image.ErrDamaged) || errors.Is(err, client.ErrDamaging))
}

// restorer is one Restore under way.
type restorer struct {
	begin time.Time
	opts  *RestoreOptions
	src   image.Source
	path  string // of the image, absolute, or its address: a checkpoint may ask from elsewhere
	state []byte // process.bin, unchecked
	st    *native.State
	eager *os.File

	// Made beside the rebuild, by openImage and prepare.
	im     *image.Image
	keeper *pager.Keeper // the pager's, once there is one
	pager  *pager.Pager
	giveUp context.CancelFunc // ends what the pager reads before it serves

	running  chan struct{} // closed once the process runs
	ready    chan struct{} // closed once that is made
	readyErr error         // why it could not be
}

// open reads what the rebuild needs, and no more: that the image is whole is
// looked at meanwhile, by prepare.
func (r *restorer) open(ctx context.Context) error {
	defer r.opts.Trace.Begin(0, "read "+image.ProcessObject)()
	size, err := r.src.Size(ctx, image.ProcessObject)
	if errors.Is(err, os.ErrNotExist) && r.ofCRIU(ctx) {
		return &RefusedError{Reasons: []Reason{{
			What: "the image", Why: "it was made of CRIU's images, which hold more than our own engine restores",
			Help: "start lazyrestore lazy-pages -D on it, then criu restore --lazy-pages -D on it",
		}}}
	}
	if err != nil {
		return objectError(image.ProcessObject, err)
	}
	if size > image.MaxProcess { // the manifest, which is read meanwhile, has not told what it should be
		err := fmt.Errorf("%d bytes long, which is beyond %d", size, image.MaxProcess)
		return &image.DamagedError{Object: image.ProcessObject, Frame: image.NoFrame, Err: err}
	}
	state, err := image.ReadWhole(ctx, r.src, image.ProcessObject, 0, size)
	if err != nil {
		return objectError(image.ProcessObject, err)
	}
	r.state = state
	if r.st, err = native.DecodeState(state); err != nil {
		return err
	}
	if r.st.EagerBytes > 0 {
		if r.eager, err = objectFile(ctx, r.src, image.EagerObject); err != nil {
			return objectError(image.EagerObject, err)
		}
	}
	return nil
}

// ofCRIU reports whether the image was made of an image set of CRIU's, whose
// process tree is an object of it.
func (r *restorer) ofCRIU(ctx context.Context) bool {
	_, err := r.src.Size(ctx, "pstree.img")
	return err == nil
}

// openImage does what needs no state: it reads the manifest.
func (r *restorer) openImage(ctx context.Context) (err error) {
	defer r.opts.Trace.Begin(r.opts.Trace.Row("lazyrestore", "prepare"), "read the manifest")()
	r.im, err = image.Open(ctx, r.src, image.OpenOptions{Digest: r.opts.Digest})
	return err
}

// startKeeper starts the keeper. Where none was there before Go began, that copies
// page tables, while nobody may touch memory that is not there yet: it is done by the
// one who waits for the process.
func (r *restorer) startKeeper() (err error) {
	if r.st.LazyBytes == 0 {
		return pager.DropKeeper()
	}
	defer r.opts.Trace.Begin(0, "start the keeper")()
	r.keeper, err = pager.StartKeeper()
	return err
}

// check compares with the manifest what open has read.
func (r *restorer) check(ctx context.Context) error {
	if err := r.im.CheckObject(image.ProcessObject, r.state); err != nil {
		return err
	}
	if r.opts.Digest != "" && r.st.EagerBytes > 0 {
		// Its checksum in process.bin finds damage; malice takes this.
		_, err := r.im.ReadObject(ctx, image.EagerObject)
		return err
	}
	return nil
}

// checkHidden refuses an image that has lazy pages of shared memory where no mapping
// shows it: no fault would bring them. A checkpoint makes such memory eager.
func (r *restorer) checkHidden(ctx context.Context) error {
	hidden := r.st.Hidden()
	if hidden.Empty() {
		return nil
	}
	ix, err := r.im.OpenIndex(ctx)
	if err != nil {
		return err
	}
	for at := range hidden.All() {
		for i := max(ix.SegmentAt(at.Start), 0); i < ix.Segments() && ix.SegmentRange(i).Overlaps(at); i++ {
			if err := ix.Load(ctx, i, make([]byte, ix.SegmentBytes(i)), image.Demand); err != nil {
				return err
			}
		}
		for run := range ix.RunsIn(at) {
			if run.Kind == image.Stored {
				return &RefusedError{Reasons: []Reason{{
					What: "shared memory", Why: "the image has pages of it that are mapped nowhere, which were to come lazily and never would",
					Help: "make the checkpoint again with this version",
				}}}
			}
		}
	}
	return nil
}

// prepare looks whether the image is whole, and whether there is memory enough,
// and makes the pager, which opens its index.
func (r *restorer) prepare(ctx context.Context) error {
	row := r.opts.Trace.Row("lazyrestore", "prepare")
	defer r.opts.Trace.Begin(row, "prepare")()
	checked := r.opts.Trace.Begin(row, "check the state")
	if err := r.check(ctx); err != nil {
		return err
	}
	checked()
	if err := checkMemory(r.st); err != nil {
		return err
	}
	if r.st.LazyBytes == 0 {
		return nil
	}
	if err := r.checkHidden(ctx); err != nil {
		return err
	}
	if r.opts.DryRun {
		_, err := r.im.LoadIndex(ctx) // the pager would: that the frames are there is part of it
		return err
	}
	opts := pager.Options{
		Workers: r.opts.Workers, OnLost: r.opts.OnLost.pager(), HugePages: r.st.Huge, Logger: r.opts.Logger,
		Runs: r.running, Stages: r.opts.Stages, Trace: r.opts.Trace,
	}
	if r.opts.Background == BackgroundNone {
		opts.Background = pager.None
	}
	var err error
	if r.pager, err = pager.New(r.im, opts); err != nil {
		return err
	}
	ctx, r.giveUp = context.WithCancel(ctx)
	if _, local := r.src.(image.Filer); local {
		defer r.giveUp()
		return r.pager.Prepare(ctx)
	}
	go func() {
		defer r.giveUp()
		_ = r.pager.Prepare(ctx) // that takes a while; Serve tells what is wrong
	}()
	return nil
}

// discard gives back what prepare and startKeeper have made, for a process that
// does not run. The source is not used after it.
func (r *restorer) discard() error {
	var err error
	if r.pager != nil {
		r.giveUp()
		err = r.pager.Discard()
	}
	return errors.Join(err, r.endKeeper())
}

// endKeeper ends the keeper, unless a pager that had it has done so.
func (r *restorer) endKeeper() error {
	k := r.keeper
	if k == nil {
		return nil
	}
	r.keeper = nil
	return k.Close()
}

// startKeeperFirst starts the keeper before the rebuild where nothing is copied for it: then
// the pager need not wait for who waits for the process.
func (r *restorer) startKeeperFirst(opts *native.RebuildOptions) error {
	if r.st.LazyBytes == 0 || r.opts.DryRun || !pager.KeeperIsThere() {
		return nil
	}
	opts.Meanwhile = nil
	return r.startKeeper()
}

func (r *restorer) run(ctx context.Context) (*Process, error) {
	// While this goroutine reads and plans, another processor has nothing to do.
	// What waits until the rebuild waits for the process would be in its way:
	// on two processors the kernel queues both behind one.
	opened := make(chan error, 1)
	go func() {
		// Go starts a thread of its own for the first who locks a goroutine to one.
		// That is the tracer, for which everything waits, unless it is done here.
		runtime.LockOSThread()
		runtime.UnlockOSThread()
		opened <- r.openImage(ctx)
	}()
	if err := r.open(ctx); err != nil {
		// The manifest may tell more: another version, no image at all; or that a state
		// that makes no sense is not what was written, which the source has to be told.
		more := <-opened
		if more == nil && r.state != nil {
			more = r.im.CheckObject(image.ProcessObject, r.state)
		}
		return nil, cmp.Or(more, err)
	}
	if r.eager != nil {
		defer r.eager.Close()
	}
	opts := native.RebuildOptions{
		Eager:        r.eager,
		ChangedFiles: r.opts.ChangedFiles.native(),
		Stdio:        r.opts.Stdio.native(),
		PIDNamespace: r.opts.PIDNamespace,
		Terminal:     r.opts.Terminal != nil,
		Logger:       r.opts.Logger,
		Meanwhile:    r.startKeeper,
		TimerSlack:   pager.OwnSlack(),
		Trace:        r.opts.Trace,
	}
	if err := r.startKeeperFirst(&opts); err != nil {
		return nil, errors.Join(cmp.Or(<-opened, err), r.endKeeper()) // the source is not closed while it is read
	}
	r.ready, r.running = make(chan struct{}), make(chan struct{})
	whole, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		defer close(r.ready)
		if r.readyErr = <-opened; r.readyErr == nil {
			r.readyErr = r.prepare(ctx)
		}
		if r.readyErr != nil {
			cancel(r.readyErr) // what is built from a damaged image may never end
		}
	}()
	if r.opts.DryRun {
		return r.dryRun(ctx, opts)
	}
	p := r.process()
	rebuild := func() error { return r.rebuild(ctx, whole, p, opts) }
	var err error
	if p.deathSignal {
		err = p.onThreadThatStays(rebuild)
	} else {
		err = rebuild()
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

// rebuild makes the process and lets it go. whole ends with ctx, and where the image
// turns out not to be whole.
func (r *restorer) rebuild(ctx, whole context.Context, p *Process, opts native.RebuildOptions) error {
	opts.Serve = func(built *native.Process) (func(), error) { return p.attach(r, built) }
	built, err := native.Rebuild(whole, r.st, opts)
	waited := r.opts.Trace.Begin(0, "wait for what was prepared beside")
	<-r.ready
	waited()
	if r.readyErr != nil {
		if err == nil {
			built.Kill()
		}
		err = r.readyErr
	} else if errors.Is(err, image.ErrDamaged) {
		r.rejectEager(err) // the rebuild reads files, and tells nobody
	}
	if err != nil {
		return errors.Join(err, r.discard())
	}
	p.pid, p.pidfd, p.space = built.PID, built.PIDFD, built.Space
	p.result.PID, p.result.Warnings = built.PID, built.Warnings
	return p.start(ctx, r, built)
}

// rejectEager tells the source, if it wants to know, that the eager pages are not what was written.
func (r *restorer) rejectEager(err error) {
	if source, ok := r.src.(image.Rejecter); ok {
		source.Reject(image.EagerObject, 0, int64(r.st.EagerBytes), err)
	}
}

// process is the result of a restore so far.
func (r *restorer) process() *Process {
	p := &Process{
		pid: r.st.PID, pidfd: -1, begin: r.begin, src: r.src,
		resident: make(chan struct{}), ended: make(chan struct{}),
		result: RestoreResult{
			PID: r.st.PID, Mappings: len(r.st.VMAs), Threads: len(r.st.Threads),
			LazyBytes: r.st.LazyBytes, EagerBytes: r.st.EagerBytes,
		},
	}
	if r.opts.PIDNamespace {
		p.result.InnerPID = r.st.PID
	}
	p.deathSignal = r.st.PDeathSig != 0 || slices.ContainsFunc(r.st.Threads, func(th native.Thread) bool { return th.Switches.DeathSig != 0 })
	return p
}

// dryRun looks at all that a restore may be refused for. The Process it gives
// has a result and nothing else.
func (r *restorer) dryRun(ctx context.Context, opts native.RebuildOptions) (*Process, error) {
	if <-r.ready; r.readyErr != nil {
		return nil, r.readyErr
	}
	warnings, err := native.CheckRebuild(ctx, r.st, opts)
	if errors.Is(err, image.ErrDamaged) {
		r.rejectEager(err)
	}
	if err != nil {
		return nil, err
	}
	p := r.process()
	p.result.Warnings = warnings
	close(p.ended)
	return p, nil
}
