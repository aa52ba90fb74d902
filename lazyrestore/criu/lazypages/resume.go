package lazypages

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/pager"
	"github.com/lazyrestore/lazyrestore/uffd"
)

// Resume is Serve in the place of a daemon that was killed, or whose Serve
// returned early, for the same images and work directory. Threads that have
// been waiting since go on. Where that daemon was killed between the end of its work and its own, nothing is
// to be done but to remove what it left. The error wraps pager.ErrNoPredecessor where
// there is nothing to take over: no such daemon, or its keeper has ended; and ErrServed where a daemon serves that was not killed.
func Resume(ctx context.Context, opts Options) (pager.Stats, error) {
	unlock, err := opts.lock(ctx)
	if err != nil {
		return pager.Stats{}, err
	}
	defer unlock()
	left, err := readState(opts.dir())
	if errors.Is(err, fs.ErrNotExist) {
		return pager.Stats{}, fmt.Errorf("%w: %w", pager.ErrNoPredecessor, err)
	}
	if err != nil {
		return pager.Stats{}, err
	}
	if err := left.reachable(); err != nil {
		return pager.Stats{}, err
	}
	if left.Images == "" {
		return pager.Stats{}, fmt.Errorf("%s: %w", left.path, errUnknown)
	}
	d, err := open(ctx, opts, left.building())
	if err != nil {
		return pager.Stats{}, err
	}
	defer d.set.close()
	defer func() { d.counter.stop() }() // there may be another by then
	if left.Images != d.state.Images {
		return pager.Stats{}, errors.Join(fmt.Errorf("%s: %w", left.path, errOther), d.pager.Discard())
	}
	conn, err := d.takeOver(ctx, left)
	if errors.Is(err, pager.ErrNoPredecessor) && left.Done && !d.pager.Holds() {
		d.log.Info("nothing is missing: all memory is there, or the tasks have ended")
		return d.finished(errors.Join(d.pager.Discard(), d.state.remove()))
	}
	if err != nil {
		return pager.Stats{}, errors.Join(err, d.discard())
	}
	if d.Ready != nil {
		if err := d.Ready(); err != nil {
			return pager.Stats{}, errors.Join(err, d.discard())
		}
	}
	if conn < 0 {
		d.pager.Gathered() // also where the state says that one of the predecessors had not
		err = d.pager.ServeAttached(ctx)
		if err == nil || errors.As(err, new(*pager.LostError)) {
			err = errors.Join(err, d.state.remove())
		}
		return d.finished(err)
	}
	if listens(conn) {
		d.listener = conn
		return d.serve(ctx, d.accept)
	}
	return d.serve(ctx, func(*waker) (int, error) { return conn, nil })
}

// ErrLeft is wrapped by the error about a work directory in which tasks of a daemon that was killed wait for Resume: another one's
// state would be in the place of what that has to know of them.
var ErrLeft = errors.New("tasks of a daemon that was killed wait for one that resumes")

// errElsewhere is for a work directory that is used from several pid namespaces: what the state says of processes is not true here.
var errElsewhere = fmt.Errorf("%w, in the pid namespace of that one", ErrLeft)

// errUntold is for one of which nothing shows whether tasks wait there.
var errUntold = fmt.Errorf("%w, or may, in the pid namespace of that one: whether anybody is left there cannot be told", ErrLeft)

// reachable gives an error, which wraps pager.ErrNoPredecessor, if none of the keepers can live, or if they are processes
// of another pid namespace, or may be.
func (s *state) reachable() error {
	if s.isOld() {
		return fmt.Errorf("%s: %w: the machine was booted since", s.path, pager.ErrNoPredecessor)
	}
	if !s.isElsewhere() {
		return nil
	}
	switch held, err := s.isHeld(); {
	case err != nil:
		return fmt.Errorf("%s: %w: %w", s.path, errUntold, err)
	case held:
		return fmt.Errorf("%s: %w", s.path, errElsewhere)
	}
	return fmt.Errorf("%s: %w: it was in another pid namespace, and nobody is left there", s.path, pager.ErrNoPredecessor)
}

// nobodyWaits gives an error if in the work directory there is what Resume would go on from.
func (o *Options) nobodyWaits() error {
	left, err := readState(o.dir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if errors.Is(err, errDamagedState) {
		if o.Logger != nil {
			o.Logger.Warn("what a daemon before has left is taken for left by a crash of the machine", "error", err)
		}
		return nil
	}
	if err != nil {
		return err
	}
	if err := left.reachable(); errors.Is(err, pager.ErrNoPredecessor) {
		return nil
	} else if err != nil {
		return err
	}
	for _, k := range left.Keepers {
		of, err := k.open()
		if errors.Is(err, pager.ErrNoPredecessor) {
			continue
		}
		if err != nil {
			return err
		}
		waits, err := of.Waits(k.Connection)
		of.Close()
		if err != nil {
			return err
		}
		if waits {
			return fmt.Errorf("%s: %w", left.path, ErrLeft)
		}
	}
	return nil
}

// errUnknown is for what an older daemon has left.
var errUnknown = errors.New("it does not say which images the daemon before served, which was of another version; its tasks wait for a --resume of that version")

// errOther is for who would go on with the pages of another process, or of another time.
var errOther = errors.New("not the images that the daemon before served: others were named, or they were written to since; its tasks wait for a --resume with those")

// takeOver takes what a keeper of the predecessor holds. conn is the
// connection of criu restore, -1 if the tree was built already.
func (d *daemon) takeOver(ctx context.Context, left *state) (conn int, err error) {
	own := d.state.Keepers[0]
	d.state.become(left)
	err = pager.ErrNoPredecessor
	for _, k := range left.Keepers {
		if conn, err = d.takeFrom(ctx, k, left, own); !errors.Is(err, pager.ErrNoPredecessor) || d.pager.Holds() {
			break
		}
	}
	switch {
	case err == nil:
	case d.pager.Holds():
		return -1, err // the file names our keeper, who may be the only one by now
	default:
		if !slices.Equal(d.state.Keepers, left.Keepers) { // it was written
			d.state.become(left)
			err = errors.Join(err, d.state.write())
		}
		d.state.letGo() // it is not ours
		return -1, err
	}
	d.state.Keepers = []keeper{own}
	d.speaks(conn)
	return conn, d.state.write()
}

// takeFrom takes over what one keeper of those that are left holds. own is
// ours.
func (d *daemon) takeFrom(ctx context.Context, k keeper, left *state, own keeper) (conn int, err error) {
	of, err := k.open()
	if err != nil {
		return -1, err
	}
	defer of.Close()
	held, err := of.Held(ctx)
	if errors.Is(err, pager.ErrTaken) || err != nil && (k.Connection < 0 || !errors.Is(err, pager.ErrNoPredecessor)) {
		return -1, err // where it was taken over from it has been ended, and what it holds has another keeper
	}
	up := setUp{conn: -1}
	if k.Connection >= 0 {
		if up, err = d.takeSetUp(of, k.Connection, held); err != nil {
			return -1, err
		}
	}
	conn, orphan := up.conn, up.orphan
	// Whoever comes after us, if we are killed from here on, finds all of it with
	// k as long as that lives, and with our keeper then: nothing happens before
	// the file names that alone.
	own.Connection = conn
	d.state.Keepers = append(slices.Clone(left.Keepers), own)
	if err := d.state.write(); err != nil {
		return -1, errors.Join(err, d.putBack(of, &up))
	}
	err = d.pager.TakeOver(ctx, of, pager.Target{PidFD: -1})
	if errors.Is(err, pager.ErrNoPredecessor) && !errors.Is(err, pager.ErrTaken) && conn >= 0 && len(d.state.Tasks) == 0 {
		// It was killed before the first task was written down, and has no more.
		if err = of.End(ctx); errors.Is(err, pager.ErrNoPredecessor) {
			err = nil // it has ended
		}
	}
	if err != nil {
		return -1, errors.Join(err, d.putBack(of, &up))
	}
	d.log.Info("taken over", "keeper", k.Pid, "tasks", len(d.state.Tasks), "built", conn < 0)
	if orphan == nil {
		return conn, nil
	}
	pid := d.state.Coming
	if err := d.pager.Attach(orphan, pager.Target{Pid: pid, PidFD: -1, Taken: true}, d.set.tasks[pid]); err != nil {
		d.pager.Hold(orphan) // k may have ended
		return -1, fmt.Errorf("task %d: %w", pid, err)
	}
	return conn, d.state.came(pid)
}

// A setUp is what a keeper holds of the setting-up.
type setUp struct {
	conn   int      // of criu restore; -1 if the tree is built
	orphan *uffd.FD // of a task that had come and was not written down yet; nil if there is none
	theirs int      // the keeper's number for it
}

// takeSetUp takes what belongs to the setting-up: the connection, and of what is not held a task's.
func (d *daemon) takeSetUp(of *pager.Leftover, connection int, held []pager.Held) (up setUp, err error) {
	if up.conn, err = takeConnection(of, connection); err != nil {
		return setUp{}, fmt.Errorf("connection of criu restore: %w", err)
	}
	d.keeper.KeepUnread(up.conn, finished)
	if d.state.Coming != 0 {
		err = d.takeOrphan(of, held, &up)
	}
	if err != nil {
		d.keeper.KeepUnread(-1, finished)
		return setUp{}, errors.Join(fmt.Errorf("task %d: %w", d.state.Coming, err), unix.Close(up.conn))
	}
	return up, nil
}

// takeConnection takes the connection of criu restore: it is written down, or where it is not yet, which is as long as no task
// is, what it was made to is. That is taken itself if the connection is still in its queue.
func takeConnection(of *pager.Leftover, written int) (fd int, err error) {
	fd, err = of.Take(written)
	if err != nil || !listens(fd) {
		return fd, err
	}
	accepted, err := accepted(of, fd)
	if err != nil || accepted >= 0 || !pager.Unread(fd) {
		_ = unix.Close(fd)
	} else {
		return fd, nil
	}
	if err == nil && accepted < 0 {
		err = fmt.Errorf("%w: nobody has connected", pager.ErrNoPredecessor)
	}
	return accepted, err
}

// accepted takes the keeper's connection that was made to listener; -1 if there is none.
func accepted(of *pager.Leftover, listener int) (int, error) {
	to, err := nameOf(listener)
	if err != nil {
		return -1, err
	}
	fds, err := of.Sockets()
	if err != nil {
		return -1, err
	}
	for _, fd := range fds {
		own, err := of.Take(fd)
		if err != nil {
			return -1, err
		}
		if name, err := nameOf(own); err == nil && name == to && !listens(own) {
			return own, nil
		}
		_ = unix.Close(own)
	}
	return -1, nil
}

// putBack gives up what was taken in vain. criu restore, if nobody else has the
// connection, sees that and ends what it has built; the task's memory is held until
// then if the keeper has it no more.
func (d *daemon) putBack(of *pager.Leftover, up *setUp) error {
	if up.orphan != nil && !of.GiveBack(up.orphan, up.theirs) {
		d.pager.Hold(up.orphan)
	}
	if up.conn < 0 {
		return nil
	}
	d.keeper.KeepUnread(-1, finished)
	_ = unix.Close(up.conn)
	if !d.pager.Holds() {
		return nil
	}
	d.state.Keepers[len(d.state.Keepers)-1].Connection = -1 // ours, for a successor to go on from
	return d.state.write()
}

// takeOrphan takes the userfaultfd of the task that was coming, unless it has
// not come, or was written down already.
func (d *daemon) takeOrphan(of *pager.Leftover, held []pager.Held, up *setUp) error {
	if slices.ContainsFunc(held, func(h pager.Held) bool { return h.Pid == d.state.Coming }) {
		return d.state.came(d.state.Coming)
	}
	fds, err := of.Userfaultfds()
	if err != nil {
		return err
	}
	for _, fd := range fds {
		if slices.ContainsFunc(held, func(h pager.Held) bool { return h.FD == fd }) {
			continue
		}
		own, err := of.Take(fd)
		if err != nil {
			return err
		}
		up.orphan, up.theirs = uffd.FromFD(own), fd
		return nil
	}
	return nil
}
