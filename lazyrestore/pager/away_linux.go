package pager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
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
	// Of who brings; of the reader in the states brought and failed.
	came page.Set // is in its object now
	gone page.Set // of objects of which the process has nothing any more: others may miss them still
}

// States of it.
const (
	idle     int32 = iota
	underWay       // a worker is at it
	brought        // that is all, or more can be
	failed         // no more can be
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

// eachPart calls f with what is away and stored, or may be for all that the index has told.
func (s *space) eachPart(t *table, f func(Part)) {
	if s.away.Empty() {
		return
	}
	for _, o := range s.objects {
		for r := range s.away.Within(o.Range) {
			t.segments(r, func(k int, _ *segment) {
				in := r.Intersect(t.SegmentRange(k))
				if !t.Loaded(k) {
					f(Part{in, o})
					return
				}
				for run := range t.RunsIn(in) {
					if stored := run.Range().Intersect(in); run.Kind == image.Stored {
						f(Part{stored, o})
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
		r.gate.shut()
		for at := range s.bring.gone.All() {
			s.away.Remove(at)
		}
		r.gate.open()
		s.bring.came, s.bring.gone = page.Set{}, page.Set{}
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
		w.log.Debug("shared memory that is mapped nowhere has been brought", "space", s.id)
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
	var over page.Set // objects
	for _, p := range list() {
		if over.Covers(p.Object.Range) {
			continue
		}
		err := w.bringPart(ctx, s, p)
		switch {
		case errors.Is(err, errGone):
			s.bring.gone.Add(p.Object.Range)
		case err != nil:
			errs = append(errs, err)
		default:
			continue
		}
		over.Add(p.Object.Range)
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
		if err := w.bringRun(ctx, s, p.Object, r, plain[from:from+r.Len()]); err != nil {
			return err
		}
	}
	return nil
}

// bringRun copies what is away of r, whose data is plain, into its object. In between the object is not open: who looks
// whether another process has it, as a checkpoint does, is to find that none has.
func (w *worker) bringRun(ctx context.Context, s *space, object page.Object, r page.Range, plain []byte) error {
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

// copyInto copies what is away of r, whose data is plain, to where it is in the file fd, from offset on.
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
	return w.copyAway(orderly{u, new(model)}, base, s, r, plain)
}

// copyAway copies what is away of r to the memory in which r begins at base, and notes that it came. What is not away any more,
// as a mapping has grown to there since plain was fetched, need not come, and may be away again.
func (w *worker) copyAway(into memory, base page.Addr, s *space, r page.Range, plain []byte) (outcome, error) {
	for at := r.Start; at < r.End; {
		// No more than may be copied before the reader is let in.
		end := min(r.End, at+min(page.Addr(w.piece())<<page.Shift, oneCopy))
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
			s.bring.came.Add(in)
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
	errGone    = errors.New("the process has nothing of the object any more")
	errNoPlace = errors.New("no process whose pid is known has anything of the object")
)

// openObject opens an object of s by a mapping of it, where the pid of s is not known by one of another process that shares it.
func (w *worker) openObject(ctx context.Context, s *space, object page.Object) (int, error) {
	const tries, pause = 50, 2 * time.Millisecond
	if object.Inode == 0 {
		return -1, errNoPlace
	}
	err := errNoPlace
	for try := 0; try < tries && !s.ended.Load(); try++ {
		of := []*space{s}
		if s.pid == 0 {
			of, err = *w.spaces.Load(), errNoPlace
		}
		for _, o := range of {
			if o.pid == 0 || o.ended.Load() {
				continue
			}
			fd, tried := w.tryOpen(o, object)
			if tried == nil {
				return fd, nil
			}
			if o == s || !errors.Is(tried, errGone) {
				err = tried
			}
		}
		if errors.Is(err, errGone) || errors.Is(err, errNoPlace) {
			break
		}
		if noRoom(err) {
			try-- // a descriptor will be free
		}
		if err := sleep(ctx, pause); err != nil {
			return -1, err
		}
	}
	return -1, fmt.Errorf("open shared memory: %w", err)
}

// tryOpen may fail for a change that is under way. The error is errGone where s has no mapping of the object.
func (w *worker) tryOpen(s *space, object page.Object) (int, error) {
	mapped := func() (vmas []proc.VMA, i int, err error) {
		vmas, err = proc.ReadMaps(s.pid)
		return vmas, slices.IndexFunc(vmas, func(v proc.VMA) bool { return isOf(&v, object) }), err
	}
	vmas, i, err := mapped()
	if err == nil && i < 0 {
		// It may have moved while that was read. Inside the gate nobody is told of a change, so that it is seen.
		w.gate.enter()
		vmas, i, err = mapped()
		unsure := len(vmas) == 0 || hasEnded(s.u) || isChanging(s.u) || s.unsettled()
		w.gate.leave()
		if err == nil && i < 0 && unsure {
			err = errors.New("what the process has mapped is changing")
		}
	}
	switch {
	case err != nil:
		return -1, err
	case i < 0:
		return -1, errGone
	}
	path := fmt.Sprintf("/proc/%d/map_files/%x-%x", s.pid, uint64(vmas[i].Start), uint64(vmas[i].End))
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Dev != object.Dev || st.Ino != object.Inode {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("%s is another file by now", path)
	}
	return fd, nil
}

// isOf reports whether v shows something of an object whose file is known.
func isOf(v *proc.VMA, o page.Object) bool {
	return v.Shared && v.Inode != 0 && v.Inode == o.Inode && unix.Mkdev(v.DevMajor, v.DevMinor) == o.Dev
}
