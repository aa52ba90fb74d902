package pager

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// A guard region (MADV_GUARD_INSTALL) takes the place of what was there, and nothing tells of it. UFFDIO_COPY takes
// the place of the guard in turn, so before it copies whoever installs looks where there are guards, inside
// the gate, and leaves them out:
//
//   - Private memory under a guard is gone for the process: where the guard is removed again it finds zeros. So
//     what was missing there is missing no more. That is a change of the model, and so left to the
//     reader, which makes it before it reads anything else of the space.
//   - Shared memory under a guard is still in its object, for other mappings and for when the guard is removed. A
//     page of it that has a place without a guard is installed there, and then it is in the object. Else it
//     stays missing as long as the guard stands.
//
// The one page that a thread waits for needs no look: touching a guard raises no fault that
// a userfaultfd is told of. A guard that is installed between the look and the copy is lost. Who waits for a page
// over which one is found is woken.
//
// Where a guard was removed from memory that had come before, its pages are missing again, though
// nothing has taken them away. Memory that has had guards shows that (wasZapped), and then they are zero. So it is
// in a forked child with what had come before the fork to memory that a fork wipes (MADV_WIPEONFORK).

// guards finds the guard regions of a space. The zero value finds none.
type guards struct {
	scan    atomic.Pointer[proc.GuardScanner] // nil before it was seen to be of the space
	opening atomic.Bool                       // somebody opens one, and sees to that
	vain    atomic.Int32                      // how often there was none, or not of the space

	some atomic.Bool
	mu   sync.Mutex
	met  []page.Range // guarded by mu: private, with what was missing there: for the reader
}

// maxVain is how often it is tried to have a scanner.
const maxVain = 3

// close gives the descriptor back. Nobody looks any more.
func (g *guards) close() {
	g.vain.Store(maxVain)
	if scan := g.scan.Swap(nil); scan != nil {
		_ = scan.Close()
	}
}

// meet hands private memory that is guarded to the reader.
func (g *guards) meet(r page.Range) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.met = append(g.met, r)
	g.some.Store(true)
}

func (g *guards) take() []page.Range {
	g.mu.Lock()
	defer g.mu.Unlock()
	list := g.met
	g.met = nil
	g.some.Store(false)
	return list
}

// stretchGap is how far apart parts of a plan are that are looked at together.
const stretchGap = 64 << 10

// spareGuards takes what is guarded out of the plan for s. The outcome is there, or what stands in the way.
func (in *installer) spareGuards(s *space, plain []byte, first int) (outcome, error) {
	g := &s.guards
	if s.u == nil || s.pid == 0 || len(in.parts) == 0 || s.unsettled() { // a forked child's pid is not known
		return there, nil
	}
	if in.buf == nil {
		in.buf = new(proc.GuardBuffer)
	}
	if g.scan.Load() == nil && g.vain.Load() < maxVain {
		if !g.opening.CompareAndSwap(false, true) {
			return again, nil
		}
		out, err := in.openGuards(s, plain, first)
		g.opening.Store(false)
		if out != there {
			return out, err
		}
	}
	scan := g.scan.Load()
	if scan == nil {
		return there, nil
	}
	in.guarded = in.guarded[:0]
	for k := 0; k < len(in.parts); {
		r := in.parts[k].place()
		for k++; k < len(in.parts); k++ {
			next := in.parts[k].place()
			if next.Start < r.End || next.Start-r.End > stretchGap {
				break
			}
			r.End = next.End
		}
		var err error
		if in.guarded, err = scan.Guards(r, in.buf, in.guarded); err != nil {
			return outcomeOf(err), err // the process may have ended
		}
	}
	if len(in.guarded) > 0 {
		if isChanging(s.u) {
			return again, nil // what was there may have moved, and they be of what lies there now
		}
		in.leaveOut(s, first)
	}
	return there, nil
}

// openGuards has a scanner for s, if it can be had, and sees whether it is of s: a page where it sees nothing is there
// once it is installed. A pid may be another process's by now, or be that of another pid namespace, and by the guards
// of another process memory would be lost.
func (in *installer) openGuards(s *space, plain []byte, first int) (outcome, error) {
	g := &s.guards
	if g.scan.Load() != nil {
		return there, nil
	}
	scan, err := proc.NewGuardScanner(s.pid)
	switch {
	case noRoom(err):
		return there, nil // guards are lost this time: else all memory would have to wait
	case err != nil:
		g.vain.Store(maxVain)
		return there, nil
	}
	for _, p := range in.parts {
		if none, err := scan.Untouched(p.dst, in.buf); err != nil || !none || p.pageSize != page.Size {
			continue
		}
		p.n = page.Size
		var how outcome
		out, err := in.putPart(s, p, plain, func(_, _ int, h outcome) { how = h })
		if out != there {
			_ = scan.Close()
			return out, err
		}
		if how != there {
			continue // somebody else has put it there
		}
		in.settled(s, first, p.off, p.n, there)
		if none, err := scan.Untouched(p.dst, in.buf); err == nil && !none {
			g.scan.Store(scan)
			return there, nil
		}
		g.vain.Add(1)
		break
	}
	_ = scan.Close()
	return there, nil
}

// place is where p goes to.
func (p *part) place() page.Range { return page.RangeOf(p.dst, uint64(p.n)) }

// leaveOut takes in.guarded out of the plan.
func (in *installer) leaveOut(s *space, first int) {
	parts := slices.Clone(in.parts)
	in.parts = in.parts[:0]
	guarded := page.SetOf(in.guarded...)
	for _, p := range parts {
		rest := page.SetOf(p.place())
		for g := range guarded.Within(p.place()) {
			if p.pageSize != page.Size {
				break // there are none in hugetlb memory
			}
			rest.Remove(g)
			if !p.shared {
				at := first + (p.off+int(g.Start-p.dst))>>page.Shift
				s.settle(at, at+int(g.Pages()))
				s.guards.meet(g)
			}
			in.onGuard(p.shared)
			_ = s.mem.Wake(uint64(g.Start), g.Len()) // who has waited there since before the guard meets it now
		}
		for r := range rest.All() {
			in.parts = append(in.parts, part{r.Start, int(r.Len()), p.pageSize, p.off + int(r.Start-p.dst), p.shared})
		}
	}
}

// forgetGuarded takes what was met under guards out of the model of s. The gate is shut.
func (r *reader) forgetGuarded(s *space) error {
	for _, g := range s.guards.take() {
		if err := r.say(s, event{kind: eventRemove, from: g}); err != nil {
			return err
		}
	}
	return nil
}

const (
	// zapWakes is how often a fault on a page of private memory that is there is answered by waking
	// alone before it is looked whether it was guarded meanwhile. It is looked again each time that this has doubled: where many
	// threads have waited for the page it was there, and may be guarded later.
	zapWakes = 16
	// zapTime is for how long it is then known of all the mapping.
	zapTime = int64(100 * time.Millisecond)
)

// A zapped mapping has had guards, and maybe has them still, or is of a forked child.
type zapped struct {
	s *space
	page.Range
	at int64
}

// wasZapped reports whether the page of f, which has come, and was woken for wakes times, was zapped by a guard that was removed, or by a fork: it is
// of private memory in which there were guards, by the mapping's flag (Linux 6.19, and whoever has it from there), or of a
// forked child, and nothing is still to be told of a change. It is zero then, and no more in the model.
func (r *reader) wasZapped(f fault, wakes int) bool {
	s := f.s
	m, ok := s.find(f.addr)
	if !ok || m.Shared || m.PageSize != page.Size || s.u == nil {
		return false
	}
	z := &r.zapped
	if known := z.s == s && z.Contains(f.addr) && r.now()-z.at < zapTime; !known && (!looksForZaps(wakes) || !r.findZapped(f)) {
		return false
	}
	r.gate.shut()
	defer r.gate.open()
	if isChanging(s.u) {
		return false
	}
	if err := r.say(s, event{kind: eventRemove, from: page.RangeOf(f.addr, page.Size)}); err != nil {
		r.note(err)
		return false
	}
	return true
}

// looksForZaps reports whether it is looked for a zap when a page was woken for so many times.
func looksForZaps(wakes int) bool { return wakes >= zapWakes && wakes&(wakes-1) == 0 }

// findZapped looks for the mapping of f, and whether it is of that process: its pid may be another's. That of a forked
// child is not known, nor so whether a fork wipes it. But private memory that misses what had come has no
// other reason to.
func (r *reader) findZapped(f fault) bool {
	if f.s.pid == 0 {
		m, ok := f.s.find(f.addr)
		r.zapped = zapped{f.s, m.Range, r.now()}
		return ok
	}
	smaps, err := proc.ReadSmaps(f.s.pid)
	if err != nil {
		return false
	}
	i := slices.IndexFunc(smaps.VMAs, func(v proc.VMA) bool { return v.Contains(f.addr) })
	if i < 0 || !smaps.VMAs[i].Flags.Has(proc.VMUffdMissing|proc.VMMaybeGuard) || smaps.VMAs[i].Shared {
		return false
	}
	r.zapped = zapped{f.s, smaps.VMAs[i].Range, r.now()}
	return true
}
