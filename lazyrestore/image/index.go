package image

import (
	"fmt"
	"iter"
	"sort"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// An Index says where each page of an image is. It keeps the tables as they
// are in the file and decodes an entry when it is asked for: loading costs
// neither time nor memory for each. It never changes, and its methods may be
// called concurrently.
//
// What an Index hands out has been checked: runs ascend and do not overlap,
// each lies within its frame's plain data, each frame within the pages object.
type Index struct {
	chunkSize int
	pages     int64 // where the last frame ends
	segs      []segment
	frames    []byte
	runs      []byte
	digests   []byte // nil where nobody pinned the image
	unchecked bool   // of a plain image: frames have no checksums
}

// Frames is the number of frames; they are numbered from 0 on in the order of
// the pages object, which is that of the image addresses.
func (ix *Index) Frames() int { return len(ix.frames) / frameBytes }

// NumRuns is the number of runs.
func (ix *Index) NumRuns() int { return len(ix.runs) / runBytes }

// ChunkSize is the largest length of a frame's plain data, in bytes.
func (ix *Index) ChunkSize() int { return ix.chunkSize }

// Frame is where frame i is, 0 <= i < Frames().
func (ix *Index) Frame(i int) Frame { return ix.entry(i).Frame }

func (ix *Index) entry(i int) frameEntry { return decodeFrame(ix.frames[i*frameBytes:]) }

// Run is run i, 0 <= i < NumRuns(), in ascending order of addresses.
func (ix *Index) Run(i int) Run { return decodeRun(ix.runs[i*runBytes:]) }

// Lookup is the run that holds the page of image address a. A page in no run
// is zero. It takes O(log NumRuns()) and does not allocate.
func (ix *Index) Lookup(a page.Addr) (Run, bool) {
	i := sort.Search(ix.NumRuns(), func(i int) bool { return ix.Run(i).Page > a })
	if i == 0 {
		return Run{}, false
	}
	r := ix.Run(i - 1)
	return r, r.Range().Contains(a)
}

// RunsFrom yields the runs that hold an address at or above a, in order.
func (ix *Index) RunsFrom(a page.Addr) iter.Seq[Run] {
	i := sort.Search(ix.NumRuns(), func(i int) bool { return ix.Run(i).Range().End > a })
	return func(yield func(Run) bool) {
		for ; i < ix.NumRuns(); i++ {
			if !yield(ix.Run(i)) {
				return
			}
		}
	}
}

// FrameRuns is the runs that frame holds, in order of their addresses, which
// is that of their place in the frame.
func (ix *Index) FrameRuns(frame int) []Run {
	return ix.AppendFrameRuns(make([]Run, 0, ix.entry(frame).runs), frame)
}

// AppendFrameRuns appends the runs that frame holds to dst.
func (ix *Index) AppendFrameRuns(dst []Run, frame int) []Run {
	e := ix.entry(frame)
	first := ix.segmentOf(frame).runBase + int(e.firstRun)
	for i := range int(e.runs) {
		dst = append(dst, ix.Run(first+i))
	}
	return dst
}

// segmentOf is the segment that lists frame.
func (ix *Index) segmentOf(frame int) *segment {
	i := sort.Search(len(ix.segs), func(i int) bool { return ix.segs[i].frameBase > frame })
	return &ix.segs[i-1]
}

// Runs is all runs in ascending order of addresses, in fresh memory.
func (ix *Index) Runs() []Run {
	runs := make([]Run, ix.NumRuns())
	for i := range runs {
		runs[i] = ix.Run(i)
	}
	return runs
}

// digest is that of frame i's stored bytes, if digests were loaded.
func (ix *Index) digest(i int) (d chunk.Digest, ok bool) {
	if ix.digests == nil {
		return d, false
	}
	return chunk.Digest(ix.digests[i*digestBytes:]), true
}

// checkSegment looks at every entry of a segment whose tables are loaded:
// whatever the file says, the rest of the program can rely on the result.
// maxFrame bounds the stored length of a frame by its plain length.
func (ix *Index) checkSegment(s *segment, maxFrame func(int) int) error {
	next := 0 // run of the segment
	end := int64(-1)
	from := page.Addr(0)
	for i := s.frameBase; i < s.frameBase+s.frames; i++ {
		f := ix.entry(i)
		word := ix.frames[i*frameBytes+7]
		switch {
		case word&^frameKnown != 0 || f.Plain == 0 || f.Plain > ix.chunkSize || f.Stored <= 0 || f.Stored > maxFrame(f.Plain),
			end >= 0 && f.Offset != end, f.Offset > ix.pages-int64(f.Stored):
			return damaged(IndexObject, s.offset+int64(i-s.frameBase)*frameBytes, "frame %d: %+v", i, f)
		case f.runs == 0 || int(f.firstRun) < next || int(f.firstRun)+int(f.runs) > s.runs:
			return damaged(IndexObject, s.offset+int64(i-s.frameBase)*frameBytes, "frame %d: %d runs from %d on", i, f.runs, f.firstRun)
		}
		end = f.Offset + int64(f.Stored)
		if err := ix.checkRuns(s, next, int(f.firstRun), &from); err != nil {
			return err
		}
		next = int(f.firstRun)
		pages := uint32(0)
		for range f.runs {
			r := ix.Run(s.runBase + next)
			if r.Kind != Stored || int(r.Frame) != i || r.Offset != pages || r.Range().Empty() || r.Page < from {
				return damaged(IndexObject, s.runsAt()+int64(next)*runBytes, "run of frame %d: %+v", i, r)
			}
			pages += r.Pages
			from = r.Range().End
			next++
		}
		if int(pages)<<page.Shift != f.Plain {
			return damaged(IndexObject, s.offset+int64(i-s.frameBase)*frameBytes, "frame %d has %d bytes, its runs %d pages", i, f.Plain, pages)
		}
	}
	return ix.checkRuns(s, next, s.runs, &from)
}

// checkRuns looks at the runs i to j of a segment, which belong to no frame.
func (ix *Index) checkRuns(s *segment, i, j int, from *page.Addr) error {
	for ; i < j; i++ {
		r := ix.Run(s.runBase + i)
		if r.Kind != Zero || r.Range().Empty() || r.Page < *from {
			return damaged(IndexObject, s.runsAt()+int64(i)*runBytes, "run in no frame: %+v", r)
		}
		*from = r.Range().End
	}
	return nil
}

// checkBorders looks at what one segment alone does not show: that each one
// goes on, in the pages object and in memory, where the one before it ends.
func (ix *Index) checkBorders() error {
	end, from := int64(0), page.Addr(0)
	for i := range ix.segs {
		s := &ix.segs[i]
		if s.runs > 0 {
			if r := ix.Run(s.runBase); r.Page < from || uint64(r.Page)>>page.Shift != s.firstPage {
				return damaged(IndexObject, s.runsAt(), "segment %d starts with %+v", i, r)
			}
			from = ix.Run(s.runBase + s.runs - 1).Range().End
		}
		if s.frames > 0 {
			if f := ix.Frame(s.frameBase); f.Offset != end {
				return damaged(IndexObject, s.offset, "frame %d: offset %d, not %d", s.frameBase, f.Offset, end)
			}
			last := ix.Frame(s.frameBase + s.frames - 1)
			end = last.Offset + int64(last.Stored)
		}
	}
	if end != ix.pages {
		return damaged(IndexObject, 0, "frames end at %d, not %d", end, ix.pages)
	}
	return nil
}

// String says how much an index lists.
func (ix *Index) String() string {
	return fmt.Sprintf("%d frames, %d runs", ix.Frames(), ix.NumRuns())
}
