package image

import (
	"encoding/binary"
	"fmt"
	"iter"
	"slices"
	"sort"
	"sync"
	"sync/atomic"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// An Index says where each page of an image is. It is loaded by segments, each
// of which lists some MiB of memory: all of them by Image.LoadIndex, or after
// Image.OpenIndex those that are asked for (Load). It keeps the tables as they
// are in the file and decodes an entry when it is asked for: loading costs
// neither time nor memory for each.
//
// How many frames, runs and segments there are, and which segment lists what,
// is known from the start. All else may be asked of loaded segments only. What
// is loaded never changes, and all methods may be called concurrently.
//
// What an Index hands out has been checked: runs ascend and do not overlap,
// each lies within its frame's plain data, each frame within the pages object.
type Index struct {
	im        *Image // that it is of; nil of a plain one
	chunkSize int
	pages     int64 // where the last frame ends
	frames    int
	runs      int
	segs      []segment
	tables    []atomic.Pointer[tables] // of each of segs; nil where it is not loaded
	unchecked bool                     // of a plain image: frames have no checksums

	mu sync.Mutex // held to put something into tables
}

// Tables are the tables of one segment.
type tables struct {
	frames  []byte
	runs    []byte
	digests []byte // nil where nobody pinned the image
}

func (t *tables) frame(i int) frameEntry { return decodeFrame(t.frames[i*frameBytes:]) }
func (t *tables) run(i int) Run          { return decodeRun(t.runs[i*runBytes:]) }

// framePages is how many pages frame i holds.
func (t *tables) framePages(i int) uint16 {
	return binary.LittleEndian.Uint16(t.frames[i*frameBytes+pagesOffset:])
}

// Frames is the number of frames; they are numbered from 0 on in the order of
// the pages object, which is that of the image addresses.
func (ix *Index) Frames() int { return ix.frames }

// NumRuns is the number of runs.
func (ix *Index) NumRuns() int { return ix.runs }

// ChunkSize is the largest length of a frame's plain data, in bytes.
func (ix *Index) ChunkSize() int { return ix.chunkSize }

// Segments is the number of segments.
func (ix *Index) Segments() int { return len(ix.segs) }

// SegmentOf is the segment that lists frame.
func (ix *Index) SegmentOf(frame int) int {
	return sort.Search(len(ix.segs), func(i int) bool { return ix.segs[i].frameBase > frame }) - 1
}

// SegmentAt is the segment that lists the page of image address a, if it is in
// a run; -1 where none can.
func (ix *Index) SegmentAt(a page.Addr) int {
	n := uint64(a) >> page.Shift
	return sort.Search(len(ix.segs), func(i int) bool { return ix.segs[i].firstPage > n }) - 1
}

// SegmentFrames is the frames from first on, before end, that segment i lists.
func (ix *Index) SegmentFrames(i int) (first, end int) {
	s := &ix.segs[i]
	return s.frameBase, s.frameBase + s.frames
}

// SegmentRange is the image addresses of which segment i alone knows.
func (ix *Index) SegmentRange(i int) page.Range {
	r := page.Range{Start: page.Addr(ix.segs[i].firstPage) << page.Shift, End: ^page.Addr(page.Size - 1)}
	if i+1 < len(ix.segs) {
		r.End = page.Addr(ix.segs[i+1].firstPage) << page.Shift
	}
	return r
}

// Loaded reports whether segment i is loaded.
func (ix *Index) Loaded(i int) bool { return ix.tables[i].Load() != nil }

// FirstPages sets dst[k] to the number of pages that the frames before the
// k-th of segment i hold, and the last of dst, which is one longer than the
// segment has frames, to that of all.
func (ix *Index) FirstPages(i int, dst []uint32) {
	t, n := ix.tables[i].Load(), uint32(0)
	for k := range ix.segs[i].frames {
		dst[k] = n
		n += uint32(t.framePages(k))
	}
	dst[ix.segs[i].frames] = n
}

// Frame is where frame i is, 0 <= i < Frames().
func (ix *Index) Frame(i int) Frame {
	seg := ix.SegmentOf(i)
	return ix.tables[seg].Load().frame(i - ix.segs[seg].frameBase).Frame
}

// Lookup is the run that holds the page of image address a. A page in no run
// is zero. It takes O(log NumRuns()) and does not allocate.
func (ix *Index) Lookup(a page.Addr) (Run, bool) {
	seg := ix.SegmentAt(a)
	if seg < 0 {
		return Run{}, false
	}
	t := ix.tables[seg].Load()
	i := sort.Search(ix.segs[seg].runs, func(i int) bool { return t.run(i).Page > a })
	if i == 0 {
		return Run{}, false
	}
	r := t.run(i - 1)
	return r, r.Range().Contains(a)
}

// RunsIn yields the runs that hold an address of r, in order. The segments
// that list any of r are loaded.
func (ix *Index) RunsIn(r page.Range) iter.Seq[Run] {
	return func(yield func(Run) bool) {
		for seg := max(ix.SegmentAt(r.Start), 0); seg < len(ix.segs) && ix.SegmentRange(seg).Overlaps(r); seg++ {
			t, n := ix.tables[seg].Load(), ix.segs[seg].runs
			i := sort.Search(n, func(i int) bool { return t.run(i).Range().End > r.Start })
			for ; i < n; i++ {
				if run := t.run(i); run.Page >= r.End || !yield(run) {
					return
				}
			}
		}
	}
}

// FrameRuns is the runs that frame holds, in order of their addresses, which
// is that of their place in the frame.
func (ix *Index) FrameRuns(frame int) []Run { return ix.AppendFrameRuns(nil, frame) }

// AppendFrameRuns appends the runs that frame holds to dst.
func (ix *Index) AppendFrameRuns(dst []Run, frame int) []Run {
	seg := ix.SegmentOf(frame)
	t := ix.tables[seg].Load()
	e := t.frame(frame - ix.segs[seg].frameBase)
	dst = slices.Grow(dst, int(e.runs))
	for i := range int(e.runs) {
		dst = append(dst, t.run(int(e.firstRun)+i))
	}
	return dst
}

// Runs is all runs in ascending order of addresses, in fresh memory.
func (ix *Index) Runs() []Run {
	runs := make([]Run, 0, ix.runs)
	for seg := range ix.segs {
		t := ix.tables[seg].Load()
		for i := range ix.segs[seg].runs {
			runs = append(runs, t.run(i))
		}
	}
	return runs
}

// digest is that of frame i's stored bytes, if digests were loaded.
func (ix *Index) digest(i int) (d chunk.Digest, ok bool) {
	seg := ix.SegmentOf(i)
	t := ix.tables[seg].Load()
	if t.digests == nil {
		return d, false
	}
	return chunk.Digest(t.digests[(i-ix.segs[seg].frameBase)*digestBytes:]), true
}

// String says how much an index lists.
func (ix *Index) String() string {
	return fmt.Sprintf("%d frames, %d runs", ix.Frames(), ix.NumRuns())
}
