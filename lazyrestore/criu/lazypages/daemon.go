package lazypages

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/pager"
	"github.com/lazyrestore/lazyrestore/uffd"
)

// Options says what a daemon serves, and how.
type Options struct {
	Images  string // the directory of the image set
	WorkDir string // where the socket is made; Images if empty
	// Lock is of the work directory, and stays the caller's; Serve and Resume lock it while they run if it is nil.
	Lock *Lock
	// Image is an image of ours that was made of the set and has its pages;
	// nil: they are in the set's own files, or with Server.
	Image *image.Image
	// Server is a page server that has the lazy pages; nil: none.
	Server *Server
	// Background says whether pages come that nobody has touched.
	Background pager.Background
	Workers    int          // see pager.Options
	Ready      func() error // called once requests can be handled; nil: nobody wants to know
	Logger     *slog.Logger // discards if nil
}

// ErrProtocol is wrapped by the error about a peer that is not criu restore,
// or not one for the images that are served.
var ErrProtocol = errors.New("not what criu restore says")

// A daemon serves one tree of tasks.
type daemon struct {
	Options
	dir    *imgfile.Dir
	set    *set
	pager  *pager.Pager
	state  *state
	log    *slog.Logger
	keeper *pager.Keeper
	// listener is what criu restore connects to, -1 if that is done, and queue where it speaks, first the listener: if nobody
	// has taken what is there when this daemon ends, both stay open in the keeper, see queued.
	listener, queue int
	// counter is there until a second after criu restore has built the tree, or for a minute; nil if it was built before.
	counter *counter
}

// dir is where the daemon works.
func (o *Options) dir() string {
	if o.WorkDir != "" {
		return o.WorkDir
	}
	return o.Images
}

// lock locks the work directory, if that is not done.
func (o *Options) lock(ctx context.Context) (unlock func(), err error) {
	lock, unlock := o.Lock, func() {}
	if lock == nil {
		if lock, err = LockDir(ctx, o.dir()); err != nil {
			return nil, err
		}
		unlock = lock.Release
	}
	if lock.err != nil && o.Logger != nil {
		o.Logger.Warn("the work directory cannot be locked, and nothing keeps another daemon out of it", "dir", o.dir(), "error", lock.err)
	}
	return unlock, nil
}

// open reads the image set and makes a pager for it. Nobody is served yet.
func open(ctx context.Context, opts Options, gather bool) (*daemon, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	// Before the heap grows: its page tables are copied.
	keeper, err := pager.StartKeeper()
	if err != nil {
		return nil, err
	}
	d := &daemon{Options: opts, log: opts.Logger, keeper: keeper, listener: -1, queue: -1}
	if gather {
		d.counter = startCounter(keeper.Pid())
	}
	if d.dir, err = imgfile.Open(opts.Images); err == nil {
		if d.WorkDir == "" {
			d.WorkDir = d.dir.Path()
		}
		d.set, err = load(ctx, d.dir, opts.Image, opts.Server)
	}
	if err == nil {
		d.state = newState(d.WorkDir, keeper, d.set.sum())
		d.pager, err = pager.New(d.set.image, pager.Options{
			Background: opts.Background, Workers: opts.Workers, Keeper: keeper, Gather: gather, Logger: opts.Logger,
			Done: d.done,
		})
	}
	if err == nil {
		d.log.Info("image set read", "tasks", len(d.set.tasks), "lazy_bytes", d.set.bytes)
		return d, nil
	}
	d.counter.stop()
	if d.set != nil {
		err = errors.Join(err, d.set.close())
	}
	return nil, errors.Join(err, keeper.Close())
}

// Serve waits for criu restore to connect, and serves the tree that it builds
// until all of its memory is resident or its tasks are gone. While pages are
// missing it does not let go of a task: if it returns an error, or is killed,
// threads that touch them wait until Resume is called, in this process or
// another.
//
// Errors of the image set, before anything is done, wrap imgfile.ErrDamaged
// or fs.ErrNotExist, and ErrServed where another daemon serves in the work directory, ErrLeft
// where tasks of one that was killed wait there. A *pager.LostError means that pages could not be had, and
// nothing is waited for any more.
func Serve(ctx context.Context, opts Options) (pager.Stats, error) {
	unlock, err := opts.lock(ctx)
	if err != nil {
		return pager.Stats{}, err
	}
	defer unlock()
	if err := opts.nobodyWaits(); err != nil {
		return pager.Stats{}, err
	}
	d, err := open(ctx, opts, true)
	if err != nil {
		return pager.Stats{}, err
	}
	defer d.set.close()
	defer func() { d.counter.stop() }() // there may be another by then
	for pid, maps := range d.set.tasks {
		if err := d.pager.Expect(pid, maps); err != nil {
			return pager.Stats{}, errors.Join(err, d.pager.Discard())
		}
	}
	if err := d.listen(ctx); err != nil {
		return pager.Stats{}, errors.Join(err, d.pager.Discard())
	}
	return d.serve(ctx, d.connect)
}

// listen makes the socket that criu restore connects to, once the page server is
// connected to: one that is not there is better known of before a task waits for
// it. CRIU's own takes one connection and ends with it, and the memory with both, so
// all that may fail here is done before.
func (d *daemon) listen(ctx context.Context) error {
	fd, err := bind(d.WorkDir)
	if err != nil {
		return err
	}
	if d.Server != nil {
		if _, err = d.Server.linked(ctx); err != nil {
			err = fmt.Errorf("page server: %w", err)
		}
	}
	if err == nil {
		// What a successor has to know is there before anybody can connect.
		d.listener = fd
		d.speaks(fd)
		err = d.state.write()
	}
	if err == nil {
		if err = listen(fd, d.WorkDir); err != nil {
			err = errors.Join(err, d.state.remove())
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return errors.Join(err, os.Remove(filepath.Join(d.WorkDir, boundName)))
	}
	return nil
}

// speaks notes where criu restore speaks, -1 if it does no more; the file says it when it is written next.
func (d *daemon) speaks(fd int) {
	d.queue, d.state.Keepers[0].Connection = fd, fd
	d.keeper.KeepUnread(fd, finished)
}

// queued reports whether criu restore has said something that nobody has taken. Its tasks may run as soon as it has said all.
func (d *daemon) queued() bool { return d.queue >= 0 && pager.Unread(d.queue) }

// connect waits for criu restore, once all is there that it needs. From then on
// time counts: nothing is done that could have been done before, and no garbage
// is there to be collected.
func (d *daemon) connect(w *waker) (int, error) {
	select {
	case <-d.pager.Serving():
	case <-w.ctx.Done():
		return -1, context.Cause(w.ctx)
	}
	runtime.GC()
	if d.Ready != nil {
		if err := d.Ready(); err != nil {
			return -1, err
		}
	}
	d.log.Debug("waiting for criu restore", "dir", d.WorkDir, "socket", SocketName)
	return d.accept(w)
}

// accept waits for the connection of criu restore.
func (d *daemon) accept(w *waker) (int, error) {
	conn, err := w.accept(d.listener)
	if err != nil {
		return -1, err
	}
	d.speaks(conn) // the file says so with the first task
	d.log.Debug("criu restore has connected")
	if !d.counter.lasts() {
		d.counter = startCounter(d.keeper.Pid())
	}
	return conn, nil
}

// serve serves what comes over a connection, or what has been taken over and
// comes over a connection.
func (d *daemon) serve(ctx context.Context, connect func(w *waker) (int, error)) (pager.Stats, error) {
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	set := make(chan error, 1)
	go func() { set <- d.setUp(inner, connect) }()
	err := d.pager.ServeAttached(inner)
	cancel()
	gathering := <-set
	if err == nil || errors.As(err, new(*pager.LostError)) {
		err = errors.Join(err, d.state.remove())
		if !errors.Is(gathering, context.Canceled) {
			err = errors.Join(gathering, err)
		}
	} else if !d.pager.Holds() && d.silence() { // nobody had come
		err = errors.Join(err, d.pager.Discard(), d.state.remove())
	}
	if d.listener >= 0 && !d.queued() {
		_ = unix.Close(d.listener)
	}
	return d.finished(err)
}

// silence ends the connection of criu restore, which sees at its next word, if not before, that nobody takes it. It reports
// false, and leaves the connection, where something was said that nobody has taken: that is a successor's.
func (d *daemon) silence() bool {
	if d.queue >= 0 && listens(d.queue) {
		switch conn, err := acceptLast(d.queue); {
		case err == nil:
			d.speaks(conn)
		case errors.Is(err, unix.EAGAIN): // nobody has connected
			d.speaks(-1)
		}
	}
	if d.queue < 0 {
		return true
	}
	if d.queued() {
		return false
	}
	// What is said until the end of this process would be lost with the connection: from here on nothing is, and only then
	// it shows whether something was.
	_ = unix.Shutdown(d.queue, unix.SHUT_RD)
	if d.queued() {
		return false
	}
	_ = unix.Close(d.queue)
	d.speaks(-1)
	return true
}

// discard gives the pager up, unless criu restore has said something that nobody has taken: that the keeper has, for a successor.
func (d *daemon) discard() error {
	if !d.pager.Holds() && !d.silence() {
		return nil
	}
	return d.pager.Discard()
}

// setUp takes the tree until it is built.
func (d *daemon) setUp(ctx context.Context, connect func(w *waker) (int, error)) error {
	// A thread of its own: a word of criu restore wakes that, and nothing else.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	built := false
	defer func() {
		if built {
			d.counter.linger()
		} else {
			d.counter.stop() // there may be another by then
		}
	}()
	w, err := newWaker(ctx)
	if err != nil {
		d.pager.Abandon()
		return err
	}
	defer w.close()
	conn, err := connect(w)
	if err == nil {
		err = d.gather(w, conn)
		built = err == nil
	}
	switch {
	case err != nil && ctx.Err() != nil: // the connection stays open, for a successor to go on
		return err
	case err != nil:
		// criu restore sees that, and ends what it has built.
		d.log.Error("the tree was not completed", "error", err)
		if conn < 0 && d.listener >= 0 {
			conn, _ = acceptLast(d.listener)
		}
		if conn >= 0 {
			d.holdQueued(conn)
		}
		if d.queue >= 0 { // else nobody has connected
			d.speaks(-1)
		}
		d.pager.Abandon()
	}
	if conn >= 0 {
		_ = unix.Close(conn)
	}
	// All that can be is done by now: when the grace is over the tasks run, and a fault may wait for the processor on which
	// this thread wakes.
	if built {
		if err := w.sleep(grace); err != nil {
			return err
		}
		d.pager.Gathered() // from here on the state is the pager's, see done
	}
	return err
}

// holdQueued holds the userfaultfds that criu restore has sent and nobody has taken: the
// last descriptor of a task's memory may be closed with the connection, and what the task
// misses would be zeros. No more can be sent.
func (d *daemon) holdQueued(conn int) {
	_ = unix.Shutdown(conn, unix.SHUT_RD)
	for b := make([]byte, 64); ; {
		u, n, err := uffd.ReceiveFD(conn, b)
		if err == nil {
			d.pager.Hold(u)
		} else if n == 0 {
			return
		}
	}
}

// finished logs what was done.
func (d *daemon) finished(err error) (pager.Stats, error) {
	st := d.pager.Stats()
	d.log.Info("done", "faults", st.Faults, "installed_bytes", st.InstalledBytes, "missing_bytes", st.MissingBytes,
		"fault_p50", st.FaultP50, "fault_p99", st.FaultP99, "resident", st.Resident)
	return st, err
}

// gather takes the tasks of the tree until it is built, and writes down that it is.
func (d *daemon) gather(w *waker, conn int) error {
	for len(d.state.Tasks)+len(d.state.Zombies) < len(d.set.tasks) {
		if err := d.gatherOne(w, conn); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
				return fmt.Errorf("criu restore closed the connection with %d of %d tasks there", len(d.state.Tasks)+len(d.state.Zombies), len(d.set.tasks))
			}
			return err
		}
	}
	word, err := w.peekPid(conn)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
		return errors.New("criu restore closed the connection before the tree was built")
	case err != nil:
		return err
	case word != finished:
		return fmt.Errorf("%w: %#x, and not that the tree is built", ErrProtocol, uint32(word))
	}
	d.log.Info("the tree is built", "tasks", len(d.state.Tasks))
	d.speaks(-1)
	if err := d.state.complete(); err != nil {
		// As in done: the tasks run, and lack nothing but a way back should this daemon be killed.
		d.log.Warn("it is not written down that the tree is built", "error", err)
	}
	return nil
}

// done notes that nothing is missing any more.
func (d *daemon) done() {
	if err := d.state.finish(); err != nil {
		d.log.Warn("it is not written down that nothing is missing any more", "error", err)
	}
}

// grace is how long the background leaves the processors to criu restore, which
// has said that the tree is built and now lets go of it, of which nothing tells.
const grace = 10 * time.Millisecond

// gatherOne takes one task, or a zombie.
func (d *daemon) gatherOne(w *waker, conn int) error {
	pid, err := w.peekPid(conn)
	if err != nil {
		return err
	}
	if pid == finished {
		return fmt.Errorf("%w: the tree is built, with %d of %d tasks", ErrProtocol, len(d.state.Tasks)+len(d.state.Zombies), len(d.set.tasks))
	}
	id := max(pid, -pid)
	maps, known := d.set.tasks[id]
	switch {
	case !known:
		return fmt.Errorf("%w: task %d, which is not in the images in %s", ErrProtocol, id, d.dir.Path())
	case d.state.has(id) || pid > 0 && slices.Contains(d.state.Zombies, id):
		return fmt.Errorf("%w: task %d for the second time", ErrProtocol, id)
	case pid < 0:
		if err := d.state.zombie(id); err != nil {
			return err
		}
		return take(conn, 4)
	}
	if d.set.bare[pid] {
		return fmt.Errorf("%w: task %d is no zombie, and %s has no %s: its pages would be zero", ErrProtocol, pid, d.dir.Path(), imgfile.OfTask(pid).File())
	}
	if err := d.state.coming(pid); err != nil {
		return err
	}
	u, err := w.takeTask(conn)
	if err != nil {
		return fmt.Errorf("task %d: %w", pid, err)
	}
	d.log.Debug("task", "pid", pid, "uffd", u.Fd(), "mappings", len(maps))
	if err := d.pager.Attach(u, pager.Target{Pid: pid, PidFD: -1}, maps); err != nil {
		d.pager.Hold(u) // until criu restore has ended it
		return fmt.Errorf("task %d: %w", pid, err)
	}
	return d.state.came(pid)
}
