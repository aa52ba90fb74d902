package native

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// Bounds of what a state may ask for, far above all that a kernel gives.
const (
	maxFD       = 1 << 26
	maxPipe     = 1 << 30
	maxSignal   = 64
	maxXState   = 1 << 16
	maxSchedule = 16
)

// validate checks all that the rebuild takes for granted: places in lists,
// order, and bounds. Whoever decodes a state from bytes calls it.
func (st *State) validate() error {
	for _, check := range []func() error{st.validTasks, st.validMemory, st.validFiles, st.validLocks, st.validTimerFDs, st.validFileWatches, st.validDisplaced, st.validPolicies, st.validLocked, st.validSockets} {
		if err := check(); err != nil {
			return fmt.Errorf("%w: %w", errState, err)
		}
	}
	return nil
}

func (st *State) validTasks() error {
	if len(st.Threads) == 0 || st.Threads[0].TID != st.PID || st.PID < 1 {
		return fmt.Errorf("process %d has no leading thread", st.PID)
	}
	if len(st.Actions) > maxSignal {
		return fmt.Errorf("%d signal actions", len(st.Actions))
	}
	pending := func(list [][]byte) error {
		for _, info := range list {
			if sig := signalOf(info); len(info) != proc.SiginfoSize || sig < 1 || sig > maxSignal {
				return fmt.Errorf("a pending signal %d of %d bytes", sig, len(info))
			}
		}
		return nil
	}
	if err := pending(st.Pending); err != nil {
		return err
	}
	if err := st.distinctThreads(); err != nil {
		return err
	}
	for i := range st.Threads {
		th := &st.Threads[i]
		switch {
		case len(th.XState) > maxXState || len(th.Affinity) > 1<<10 || th.Policy > maxSchedule:
			return fmt.Errorf("thread %d has a state that no kernel gives", th.TID)
		}
		if err := errors.Join(th.validScheduling(), th.validSleep()); err != nil {
			return fmt.Errorf("thread %d: %w", th.TID, err)
		}
		if err := pending(th.Pending); err != nil {
			return fmt.Errorf("thread %d: %w", th.TID, err)
		}
	}
	return st.validTimers()
}

// distinctThreads looks whether each thread has an id of its own.
func (st *State) distinctThreads() error {
	ids := make([]int, len(st.Threads))
	for i := range ids {
		ids[i] = st.Threads[i].TID
	}
	slices.Sort(ids) // which they mostly are
	for i, id := range ids {
		if id < 1 || i > 0 && id == ids[i-1] {
			return fmt.Errorf("thread %d is there twice, or cannot be", id)
		}
	}
	return nil
}

func (st *State) validMemory() error {
	var last page.Addr
	for i := range st.VMAs {
		v := &st.VMAs[i]
		if v.Start < last || v.End <= v.Start || v.End > taskSize {
			return fmt.Errorf("mapping %v is out of order or bounds", v.Range)
		}
		last = v.End
		if shift := v.Flags >> mapHugeShift & mapHugeMask; v.Flags&unix.MAP_HUGETLB != 0 && (shift <= page.Shift || shift > maxHugeShift || v.whole(v.Range) != v.Range || v.Kind != Anonymous) {
			return fmt.Errorf("mapping %v has huge pages of 2^%d bytes", v.Range, shift)
		}
		files := 1
		switch v.Kind {
		case Anonymous:
		case PrivateFile, SharedFile:
			files = len(st.Files)
		case SharedMemory, PrivateMemory:
			files = len(st.Shared)
		default:
			files = 0
		}
		if uint64(v.File) >= uint64(files) {
			return fmt.Errorf("mapping %v is of file %d of %d", v.Range, v.File, files)
		}
		if err := within(v.Lazy, v.Range); err != nil {
			return err
		}
	}
	for i := range st.Shared {
		if s := &st.Shared[i]; s.Size > 1<<56 || !s.Image.Aligned() {
			return fmt.Errorf("shared object %d has %d bytes at %v", i, s.Size, s.Image)
		}
	}
	return st.validMapped()
}

// validMapped checks what must lie in mappings.
func (st *State) validMapped() error {
	var mapped page.Set
	for i := range st.VMAs {
		mapped.Add(st.VMAs[i].Range)
	}
	for _, g := range st.Guards {
		if g.Empty() || !mapped.Covers(g) {
			return fmt.Errorf("guard region %v is not mapped", g)
		}
	}
	return st.validEager(&mapped)
}

// validEager checks the list of what is in eager.raw: none of it twice, and as much
// in all as it has.
func (st *State) validEager(mapped *page.Set) error {
	var sum uint64
	for _, e := range st.Eager {
		switch {
		case uint64(e.Shared) > uint64(len(st.Shared)):
			return fmt.Errorf("eager pages of shared object %d of %d", e.Shared, len(st.Shared))
		case e.Empty():
			return fmt.Errorf("an empty run of eager pages at %v", e.Start)
		case e.Shared == 0 && !mapped.Covers(e.Range):
			return fmt.Errorf("eager pages %v are not mapped", e.Range)
		case e.Shared != 0 && e.End > page.Addr(st.Shared[e.Shared-1].Size).Up():
			return fmt.Errorf("eager pages %v are outside of their object", e.Range)
		case e.Len() > st.EagerBytes-sum:
			return fmt.Errorf("more eager pages than %d bytes", st.EagerBytes)
		}
		sum += e.Len()
	}
	if sum != st.EagerBytes {
		return fmt.Errorf("%d eager bytes where the list has %d", st.EagerBytes, sum)
	}
	byPlace := slices.Clone(st.Eager)
	slices.SortFunc(byPlace, func(a, b Eager) int {
		return cmp.Or(cmp.Compare(a.Shared, b.Shared), cmp.Compare(a.Start, b.Start))
	})
	for i := 1; i < len(byPlace); i++ {
		if a, b := byPlace[i-1], byPlace[i]; a.Shared == b.Shared && a.End > b.Start {
			return fmt.Errorf("eager pages %v are there twice", b.Range)
		}
	}
	return nil
}

func within(rs []page.Range, whole page.Range) error {
	last := whole.Start
	for _, r := range rs {
		if r.Empty() || r.Start < last || r.End > whole.End {
			return fmt.Errorf("range %v is out of order in %v", r, whole)
		}
		last = r.End
	}
	return nil
}

func (st *State) validFiles() error {
	last := -1
	for _, f := range st.FDs {
		if f.Num <= last || f.Num > maxFD || uint64(f.Open) >= uint64(len(st.Opens)) {
			return fmt.Errorf("descriptor %d is out of order, or of description %d of %d", f.Num, f.Open, len(st.Opens))
		}
		last = f.Num
	}
	for i := range st.Opens {
		o := &st.Opens[i]
		switch {
		case o.Kind > OpenTerminal, o.Kind == OpenStdio && o.Stdio > 2,
			o.Kind == OpenDeleted && (o.Shared == 0 || uint64(o.Shared) > uint64(len(st.Shared))),
			(o.Kind == OpenPipe || o.Kind == OpenFIFO) && (o.Size > maxPipe || uint64(len(o.Data)) > maxPipe):
			return fmt.Errorf("open file description %d cannot be", i)
		}
	}
	return nil
}
