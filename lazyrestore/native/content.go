package native

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// A piece is a run of pages whose content goes into the page index, and where
// it is read from.
type piece struct {
	page.Range           // in the process, or in the object
	image      page.Addr // of the first byte
	from       sourceKind
	object     *object // from fromObject
}

// sourceKind says where the bytes of a piece are.
type sourceKind uint8

const (
	fromMemory sourceKind = iota // the memory of the process
	fromForced                   // the same, where its protection forbids reading
	fromObject                   // a shared object, through its own file
	fromImage                    // the image that the process is still being restored from
)

// content finds what of the memory the image must hold, and parts it into the
// pages that are there from the start of a restore and those that come when
// they are touched.
type content struct {
	c       *capture
	scan    *proc.PageScanner
	missing page.Set       // what a pager has not installed yet
	owed    []page.Mapping // where that comes from, ascending
	parts   []Part
	words   page.Set // pages of words that the kernel uses, or threads at once; see eagerWords, variables
	pieces  []piece  // ascending by image address
}

// lazyGap is how much memory without content parts two ranges that are
// registered, or one from an end of its mapping: less would make many small mappings,
// more would send faults on fresh memory through the pager.
const lazyGap = 2 << 20

// maxLazyRanges bounds the ranges registered in one mapping.
const maxLazyRanges = 64

// find goes through all mappings and objects.
func (k *content) find() error {
	st := k.c.st
	for i := range st.Threads {
		for _, r := range st.Threads[i].eagerWords() {
			k.words.Add(r)
		}
	}
	for _, r := range k.c.robustPages() {
		k.words.Add(r)
	}
	for _, r := range k.variables() {
		k.words.Add(r)
	}
	for _, r := range st.MM.shown() {
		k.words.Add(r)
	}
	for i := range st.VMAs {
		v := &st.VMAs[i]
		var err error
		switch v.Kind {
		case Anonymous:
			err = k.anonymous(v)
		case PrivateFile, PrivateMemory:
			err = k.privateFile(v)
		case SharedMemory:
			for range k.words.Within(v.Range) {
				k.c.order[v.File].pinned = true
			}
			err = k.refuseGuards(v)
		case SharedFile:
			err = k.refuseGuards(v)
		}
		if err != nil {
			return fmt.Errorf("scan mapping %v: %w", v.Range, err)
		}
	}
	if err := k.objects(); err != nil {
		return err
	}
	k.boundMappings(mapLimit())
	return nil
}

// shownBytes is how much of its arguments, and of its environment, a process shows while memory is missing.
const shownBytes = 32 << 10

// shown is the pages that /proc/PID/cmdline and environ are read from. The kernel does not wait for one that is
// missing: ps would show a process without arguments.
func (mm *MM) shown() []page.Range {
	var rs []page.Range
	for _, b := range [...][2]uint64{{mm.ArgStart, mm.ArgEnd}, {mm.EnvStart, mm.EnvEnd}} {
		if b[0] < b[1] {
			rs = append(rs, page.Range{Start: page.Addr(b[0]).Down(), End: page.Addr(min(b[1], b[0]+shownBytes)).Up()})
		}
	}
	return rs
}

// refuseGuards refuses guard regions in shared memory (Linux 6.15): the pages
// that a pager installs for another mapping of it would take their place.
func (k *content) refuseGuards(v *VMA) error {
	return k.scan.Scan(v.Range, func(r proc.PageRun) error {
		if r.Categories&proc.PageGuard != 0 {
			k.c.refused.add("guard region "+r.Range.String(), "it lies in shared memory", "remove it for the checkpoint")
		}
		return nil
	})
}

// anonymous takes pages that are there, in memory or in swap, but for those
// known to be zero; and those that a pager still owes.
func (k *content) anonymous(v *VMA) error {
	if v.Flags&mapDroppable != 0 {
		return nil // the kernel may have dropped it at any time
	}
	for w := range k.words.Within(v.Range) {
		k.words.Add(v.whole(w))
	}
	if v.Advice&(1<<adviceWipeOnFork) != 0 {
		// A child has to find zeros here, which a pager knows nothing of.
		k.words.Add(v.Range)
	}
	var present, guards page.Set
	err := k.scan.Scan(v.Range, func(r proc.PageRun) error {
		if r.Categories&proc.PageGuard != 0 {
			k.c.st.Guards = append(k.c.st.Guards, r.Range)
			guards.Add(r.Range)
			return nil
		}
		if r.Categories&proc.PageHuge != 0 && v.pageSize() == page.Size {
			k.huge(r.Range)
		}
		if r.Categories&(proc.PagePresent|proc.PageSwapped) != 0 && r.Categories&proc.PageZero == 0 {
			present.Add(r.Range)
		}
		return nil
	})
	if err != nil {
		return err
	}
	from := fromMemory
	if v.Prot&unix.PROT_READ == 0 {
		from = fromForced
	}
	for r := range k.missing.Within(v.Range) {
		present.Add(r)
	}
	for r := range guards.All() {
		present.Remove(r) // what a pager owes there, it owes no more
	}
	// A run of such pages may be there in part only, say where a stack ends.
	for w := range k.words.Within(v.Range) {
		for r := range present.Within(w) {
			k.eager(r, 0)
		}
	}
	for r := range present.All() {
		k.lazy(v, r, from)
	}
	for w := range k.words.Within(v.Range) {
		present.Remove(w) // nothing is registered for their sake alone
	}
	if v.pageSize() != page.Size && !present.Empty() {
		v.Lazy = []page.Range{v.Range} // the kernel does not make one of it again where it was parted
		return nil
	}
	v.Lazy = lazyRanges(v.Range, &present)
	return nil
}

// lazy appends r's pieces: what is missing comes from the image, what is eager
// is left out.
func (k *content) lazy(v *VMA, r page.Range, from sourceKind) {
	var rest page.Set
	rest.Add(r)
	for w := range k.words.Within(r) {
		rest.Remove(w)
	}
	for part := range rest.All() {
		at := part.Start
		for m := range k.missing.Within(part) {
			k.add(page.Range{Start: at, End: m.Start}, from)
			k.add(m, fromImage)
			at = m.End
		}
		k.add(page.Range{Start: at, End: part.End}, from)
	}
}

func (k *content) add(r page.Range, from sourceKind) {
	if r.Empty() {
		return
	}
	k.pieces = append(k.pieces, piece{Range: r, image: r.Start, from: from})
	k.c.st.LazyBytes += r.Len()
}

func (k *content) eager(r page.Range, shared uint32) {
	st := k.c.st
	st.EagerBytes += r.Len()
	if n := len(st.Eager); n > 0 && st.Eager[n-1].Shared == shared && st.Eager[n-1].End == r.Start {
		st.Eager[n-1].End = r.End
		return
	}
	st.Eager = append(st.Eager, Eager{Range: r, Shared: shared})
}

func (k *content) huge(r page.Range) {
	h := &k.c.st.Huge
	if n := len(*h); n > 0 && (*h)[n-1].End == r.Start {
		(*h)[n-1].End = r.End
		return
	}
	*h = append(*h, r)
}

// lazyRanges covers what is present of a mapping with few ranges. They reach to the
// ends of what may be registered of it where those are near: the kernel does not move
// several mappings by one mremap if any of them is registered, and may stop half-way.
// And glibc takes the bounds of the first thread's stack from those of its mapping.
func lazyRanges(may page.Range, present *page.Set) []page.Range {
	for gap := uint64(lazyGap); ; gap *= 4 {
		var out []page.Range
		for r := range present.All() {
			if n := len(out); n > 0 && (gap > math.MaxInt64 || uint64(r.Start-out[n-1].End) < gap) {
				out[n-1].End = r.End
				continue
			}
			out = append(out, r)
		}
		if len(out) > maxLazyRanges {
			continue
		}
		if len(out) == 0 {
			return nil
		}
		first, last := &out[0], &out[len(out)-1]
		if uint64(first.Start-may.Start) < lazyGap {
			first.Start = may.Start
		}
		if uint64(may.End-last.End) < lazyGap {
			last.End = may.End
		}
		return out
	}
}

// privateFile takes the pages that the process has changed; the others come
// from the file. They cannot be registered, so they are eager. The kernel's page
// of zeros is a changed one: the process has zeroed it, and KSM has merged it.
func (k *content) privateFile(v *VMA) error {
	return k.scan.Scan(v.Range, func(r proc.PageRun) error {
		if r.Categories&proc.PageGuard != 0 {
			k.c.st.Guards = append(k.c.st.Guards, r.Range)
			return nil
		}
		present := r.Categories&proc.PagePresent != 0 && r.Categories&proc.PageFile == 0
		if present || r.Categories&proc.PageSwapped != 0 {
			k.eager(r.Range, 0)
		}
		return nil
	})
}

// objects takes the data of the shared objects, holes left out: lazily where
// every use of an object is a mapping, for a read through a descriptor or by
// the kernel raises no fault, and where mappings show all of the data: what none
// shows has no place in which a pager could put it, and mremap would show it later.
func (k *content) objects() error {
	at := page.ImageShared
	for _, o := range k.c.order {
		s := &k.c.st.Shared[o.index]
		s.Image = at
		at += page.Addr(s.Size).Up() + page.Size
		var data page.Set
		err := o.dataRanges(func(start, end uint64) error {
			data.Add(page.Range{Start: page.Addr(start).Down(), End: page.Addr(end).Up()})
			return nil
		})
		if err != nil {
			return fmt.Errorf("find the content of %s: %w", s.Name, err)
		}
		parts := k.sharedPieces(o, &data)
		s.Lazy = o.descriptors == 0 && !o.pinned && k.c.st.shows(o.index, &data)
		if !s.Lazy {
			for r := range data.All() {
				k.eager(r, o.index+1)
			}
			continue
		}
		for _, p := range parts {
			k.pieces = append(k.pieces, p)
			k.c.st.LazyBytes += p.Len()
		}
		k.registerObject(o, &data)
	}
	return nil
}

// sharedPieces are the pieces of an object: the data that it has, and what a
// pager has not brought yet, which is added to data. A hole is zero only where
// no mapping misses it, and the pager knows of no content.
func (k *content) sharedPieces(o *object, data *page.Set) []piece {
	image := k.c.st.Shared[o.index].Image
	var out []piece
	for r := range data.All() {
		out = append(out, piece{Range: r, image: image + r.Start, from: fromObject, object: o})
	}
	for i := range k.c.st.VMAs {
		v := &k.c.st.VMAs[i]
		if v.Kind != SharedMemory || v.File != o.index {
			continue
		}
		off := page.Addr(v.Offset)
		in := k.c.st.withContent(v) // an early build may have registered more
		from, _ := slices.BinarySearchFunc(k.owed, in.Start, func(m page.Mapping, a page.Addr) int { return cmp.Compare(m.End, a+1) })
		for _, m := range k.owed[from:] {
			part := m.Intersect(in)
			if part.Empty() {
				break
			}
			o.misses(data, page.Mapping{Range: part.Shift(off - v.Start), Image: m.ImageAddr(part.Start)})
		}
	}
	for _, p := range k.parts {
		if (objectID{p.Object.Dev, p.Object.Inode}) == o.id {
			m := page.Mapping{Range: p.Shift(-p.Object.Start), Image: p.Start}
			m.End = min(m.End, page.Addr(k.c.st.Shared[o.index].Size).Up()) // it may be shorter by now
			o.misses(data, m)
		}
	}
	slices.SortFunc(o.missing, func(a, b page.Mapping) int { return cmp.Compare(a.Start, b.Start) })
	for _, m := range o.missing {
		out = append(out, piece{Range: m.Range, image: image + m.Start, from: fromImage, object: o})
	}
	slices.SortFunc(out, func(a, b piece) int { return cmp.Compare(a.image, b.image) })
	return out
}

// misses notes what of m, a range of the object, is a hole, and adds it to data.
func (o *object) misses(data *page.Set, m page.Mapping) {
	holes := page.SetOf(m.Range)
	for there := range data.Within(m.Range) {
		holes.Remove(there)
	}
	for hole := range holes.All() {
		o.missing = append(o.missing, page.Mapping{Range: hole, Image: m.ImageAddr(hole.Start)})
		data.Add(hole)
	}
}

// registerObject notes the lazy ranges of all mappings of an object.
func (k *content) registerObject(o *object, data *page.Set) {
	for i := range k.c.st.VMAs {
		v := &k.c.st.VMAs[i]
		if v.Kind != SharedMemory || v.File != o.index {
			continue
		}
		var here page.Set
		off := page.Addr(v.Offset)
		for r := range data.Within(page.RangeOf(off, v.Len())) {
			here.Add(r.Shift(v.Start - off))
		}
		v.Lazy = lazyRanges(k.c.st.withContent(v), &here)
	}
}

// shows reports whether mappings show all of data, offsets in shared object i.
func (st *State) shows(i uint32, data *page.Set) bool {
	hidden := data.Clone()
	for k := range st.VMAs {
		if v := &st.VMAs[k]; v.Kind == SharedMemory && v.File == i {
			hidden.Remove(st.shown(v))
		}
	}
	return hidden.Empty()
}

// shown is what v, of shared memory, shows of it, as offsets.
func (st *State) shown(v *VMA) page.Range {
	return page.RangeOf(page.Addr(v.Offset), st.withContent(v).Len())
}

// Hidden is the image addresses of what no mapping shows of shared memory that is to
// come lazily. Were any of it stored, it would never come.
func (st *State) Hidden() (hidden page.Set) {
	for i := range st.Shared {
		if s := &st.Shared[i]; s.Lazy && s.Size > 0 {
			hidden.Add(page.RangeOf(s.Image, uint64(page.Addr(s.Size).Up())))
		}
	}
	for k := range st.VMAs {
		if v := &st.VMAs[k]; v.Kind == SharedMemory && !hidden.Empty() {
			hidden.Remove(st.shown(v).Shift(st.Shared[v.File].Image))
		}
	}
	return hidden
}

// withContent is as much of a mapping as can have content: shared memory that is mapped
// beyond the end of its object has none there, and in the image what follows is another object's.
func (st *State) withContent(v *VMA) page.Range {
	r := v.Range
	if v.Kind == SharedMemory {
		size := page.Addr(st.Shared[v.File].Size).Up()
		r.End = min(r.End, r.Start+max(size, page.Addr(v.Offset))-page.Addr(v.Offset))
	}
	return r
}
