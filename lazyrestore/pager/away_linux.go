package pager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
	"github.com/lazyrestore/lazyrestore/uffd"
)

// Shared memory that is mapped nowhere any more is still its object's, and a mapping that grows shows it again. What was missing
// when the last mapping that showed it went is away: it has no place to be installed in. As long as a space misses something else
// that does no harm, for a fault there is served (grown). But before the space is let go of, what is away is brought into the
// object itself, by a mapping of the object in this process. That is registered with a userfaultfd of its own, so that
// a copy finds out in the same moment whether the page has come another way. Nobody touches that mapping, and nobody can. Where
// it cannot be had, as in a forked child that is alone, the space stays registered, as where pages are lost.

// bringing is how far that is.
type bringing struct {
	state atomic.Int32
	came  page.Set // of who brings; of the reader in the state brought
}

// States of it.
const (
	idle     int32 = iota
	underWay       // a worker is at it
	brought        // came is there: all, or more can be
	failed         // as is what came, and no more can be
)

// noteAway notes what is missing of the image range r, if that is shared memory, or may be for all that the index has told.
func (s *space) noteAway(t *table, r page.Range) {
	if r.Start < page.ImageShared {
		return
	}
	var runs []image.Run
	t.segments(r, func(k int, sg *segment) {
		part := r.Intersect(t.SegmentRange(k))
		if sg == nil || sg.lost() {
			s.away.Add(part)
			return
		}
		i, end := sg.numbers(part)
		for i = s.done.nextClear(i, end); i < end; i = s.done.nextClear(i, end) {
			j := s.done.nextSet(i, end)
			t.addresses(&runs, i, j, func(r page.Range, _ int) { s.away.Add(r) })
			i = j
		}
	})
}

// eachPart calls f with what is away of the objects of which the layout still has something.
func (s *space) eachPart(t *table, f func(Part)) {
	var seen page.Set
	for _, m := range s.byProc {
		if s.away.Empty() {
			return
		}
		if !m.Shared || m.PageSize != page.Size || seen.Covers(m.Object) { // an empty one, too
			continue
		}
		seen.Add(m.Object)
		for r := range s.away.Within(m.Object) {
			t.segments(r, func(k int, _ *segment) {
				in := r.Intersect(t.SegmentRange(k))
				if !t.Loaded(k) {
					f(Part{in, m})
					return
				}
				for run := range t.RunsIn(in) {
					if stored := run.Range().Intersect(in); run.Kind == image.Stored {
						f(Part{stored, m})
					}
				}
			})
		}
	}
}

// mayLoseShared reports whether shared memory of which nothing is missing where the books have it may be so where it grows to, or
// where it is dropped.
func (s *space) mayLoseShared() bool { return !s.away.Empty() || s.hasLost.Load() }

// keeps reports whether s, which misses nothing that has a place, has to stay for what is away.
func (r *reader) keeps(s *space) bool {
	state := s.bring.state.Load()
	if state == brought || state == failed {
		r.notAway(&s.bring.came)
		s.bring.came = page.Set{}
	}
	if state == brought {
		state = idle
		s.bring.state.Store(idle)
	}
	s.stays = false
	s.eachPart(r.table, func(Part) { s.stays = true })
	if s.stays && state == idle {
		s.bring.state.Store(underWay)
		r.demand.add(r.ctx, flightKey{away: s}, fault{s: s})
	}
	return s.stays
}

// notAwayFrom notes that all that s shows is in its objects: it misses nothing.
func (r *reader) notAwayFrom(s *space) {
	var shown page.Set
	for _, m := range s.byProc {
		if m.Shared {
			shown.Add(m.ImageRange())
		}
	}
	r.notAway(&shown)
}

// notAway notes that the image addresses in came are in their objects.
func (r *reader) notAway(came *page.Set) {
	r.gate.shut()
	defer r.gate.open()
	for _, s := range *r.spaces.Load() {
		for at := range came.All() {
			if s.away.Empty() {
				break
			}
			s.away.Remove(at)
		}
	}
}

// flyAway brings what is away of a space.
func (d *demand) flyAway(ctx context.Context, w *worker, fl *flight) {
	s := fl.key.away
	err := w.bringAway(ctx, s)
	for len(d.waiting(fl)) > 0 { // nobody waits for it
	}
	switch {
	case ctx.Err() != nil, s.ended.Load():
	case noRoom(err):
		if sleep(ctx, requeuePause) == nil {
			s.bring.state.Store(brought) // the rest is tried again
		}
	case err != nil:
		w.log.Warn("shared memory that is mapped nowhere cannot be brought, and the pager stays", "space", s.id, "error", err)
		s.bring.state.Store(failed)
	default:
		s.bring.state.Store(brought)
	}
}

func (w *worker) bringAway(ctx context.Context, s *space) error {
	list := func() (parts []Part) {
		w.gate.enter()
		defer w.gate.leave()
		s.eachPart(w.table, func(p Part) { parts = append(parts, p) })
		return parts
	}
	for _, p := range list() {
		if err := w.openRange(ctx, p.Range, image.Background); err != nil {
			return err
		}
	}
	var errs []error
	var spoilt page.Set // objects
	for _, p := range list() {
		if spoilt.Covers(p.Shown.Object) {
			continue
		}
		if err := w.bringPart(ctx, s, p); err != nil {
			errs = append(errs, err)
			spoilt.Add(p.Shown.Object)
		}
	}
	return errors.Join(errs...)
}

func (w *worker) bringPart(ctx context.Context, s *space, p Part) error {
	for run := range w.RunsIn(p.Range) {
		r := run.Range().Intersect(p.Range)
		if run.Kind != image.Stored || r.Empty() {
			continue
		}
		plain, err := w.fetch(ctx, int(run.Frame), image.Background)
		if err != nil {
			return err
		}
		from := uint64(run.Offset)<<page.Shift + uint64(r.Start-run.Page)
		if err := w.bringRun(ctx, s, p.Shown.Object, r, plain[from:from+r.Len()]); err != nil {
			return err
		}
		s.bring.came.Add(r)
	}
	return nil
}

// bringRun copies what is away of r, whose data is plain, into its object. In between the object is not open: who looks
// whether another process has it, as a checkpoint does, is to find that none has.
func (w *worker) bringRun(ctx context.Context, s *space, object, r page.Range, plain []byte) error {
	for pause := time.Millisecond; ; pause = min(2*pause, memoryBackoff) {
		fd, err := w.openObject(ctx, s, object)
		if err != nil {
			return err
		}
		out, err := w.copyInto(fd, int64(r.Start-object.Start), s, r, plain)
		_ = unix.Close(fd)
		if out != full && out != again || s.ended.Load() {
			return err
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// copyInto copies what is away of r to where it is in the file fd, from offset on.
func (w *worker) copyInto(fd int, offset int64, s *space, r page.Range, plain []byte) (outcome, error) {
	// Where this process locks its future memory, what can be accessed would be touched.
	mem, err := unix.Mmap(fd, offset, int(r.Len()), unix.PROT_NONE, unix.MAP_SHARED)
	if err != nil {
		return broken, os.NewSyscallError("mmap", err)
	}
	defer func() { _ = unix.Munmap(mem) }()
	u, err := uffd.Open(uffd.CloseOnExec | uffd.UserModeOnly)
	if err != nil {
		return broken, err
	}
	defer u.Close()
	if _, err := u.Enable(0); err != nil {
		return broken, err
	}
	base := page.Addr(addressOf(mem))
	if _, err := u.Register(uint64(base), r.Len(), uffd.ModeMissing); err != nil {
		return broken, err
	}
	into := orderly{u, new(model)}
	for at := r.Start; at < r.End; {
		end := min(r.End, at+page.Addr(w.piece())<<page.Shift)
		w.gate.enter() // what is removed is so before or after it
		out, err := there, error(nil)
		for in := range s.away.Within(page.Range{Start: at, End: end}) {
			out, err = apply(into, base+(in.Start-r.Start), int(in.Len()), page.Size,
				func(dst page.Addr, _, n int) (int64, error) {
					return into.CopyNow(uint64(dst), plain[dst-base:][:n], 0)
				},
				func(_, n int, how outcome) {
					if how == there {
						w.tally.installed.Add(uint64(n))
					}
				})
			if out != there {
				break
			}
		}
		w.gate.leave()
		if out != there {
			return out, err
		}
		at = end
	}
	return there, nil
}

var (
	errNoPlace    = errors.New("no process that is known shows anything of the object")
	errNoPlaceNow = errors.New("it is not known yet where the processes show it")
)

// openObject opens the object of the image range r, by a mapping of a process that shows some of it.
func (w *worker) openObject(ctx context.Context, s *space, r page.Range) (int, error) {
	const tries, pause = 50, 2 * time.Millisecond
	var err error
	for try := 0; try < tries && !s.ended.Load(); try++ {
		var fd int
		if fd, err = w.tryOpenObject(r); err == nil || errors.Is(err, errNoPlace) {
			return fd, err
		}
		if noRoom(err) {
			try-- // a descriptor will be free
		}
		if err := sleep(ctx, pause); err != nil {
			return -1, err
		}
	}
	return -1, fmt.Errorf("open shared memory of a process: %w", err)
}

// tryOpenObject may fail for a change that is under way.
func (w *worker) tryOpenObject(r page.Range) (int, error) {
	who, m, err := w.showing(r)
	if err != nil {
		return -1, err
	}
	vmas, err := proc.ReadMaps(who.pid)
	if err != nil {
		return -1, err
	}
	for i := range vmas {
		v := &vmas[i]
		if !v.Contains(m.Start) || !v.Shared || v.Offset+uint64(m.Start-v.Start) != uint64(m.Image-r.Start) {
			continue
		}
		path := fmt.Sprintf("/proc/%d/map_files/%x-%x", who.pid, uint64(v.Start), uint64(v.End))
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, &os.PathError{Op: "open", Path: path, Err: err}
		}
		if !w.isObject(fd, path, who, m) {
			_ = unix.Close(fd)
			break
		}
		return fd, nil
	}
	return -1, fmt.Errorf("process %d does not show its shared memory at %v", who.pid, m.Start)
}

// showing is a space whose pid is known, and a mapping of it that shows something of the object r.
func (w *worker) showing(r page.Range) (who *space, m page.Mapping, err error) {
	w.gate.enter()
	defer w.gate.leave()
	err = errNoPlace
	for _, s := range *w.spaces.Load() {
		if s.pid == 0 || s.ended.Load() {
			continue
		}
		if s.unsettled() {
			err = errNoPlaceNow
			continue
		}
		s.places(r, func(p page.Mapping) {
			if p.Object == r {
				who, m = s, p
			}
		})
		if who != nil {
			return who, m, nil
		}
	}
	return nil, m, err
}

// isObject reports whether fd, which was opened as path, a mapping that holds m.Start, is what who shows there by the books.
func (w *worker) isObject(fd int, path string, who *space, m page.Mapping) bool {
	w.gate.enter()
	defer w.gate.leave()
	if now, ok := who.find(m.Start); !ok || now.Object != m.Object || now.ImageAddr(m.Start) != m.Image || who.ended.Load() || who.unsettled() {
		return false
	}
	var there, here unix.Stat_t
	return unix.Stat(path, &there) == nil && unix.Fstat(fd, &here) == nil && there.Dev == here.Dev && there.Ino == here.Ino &&
		!hasEnded(who.u) && !isChanging(who.u)
}
