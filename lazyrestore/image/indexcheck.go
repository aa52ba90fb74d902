package image

import (
	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// checkSegment looks at every entry of segment i, whose tables t are: whatever
// the file says, the rest of the program can rely on the result.
func (ix *Index) checkSegment(i int, t *tables) error {
	s := &ix.segs[i]
	next := 0 // run of the segment
	end := int64(-1)
	from := page.Addr(s.firstPage) << page.Shift
	if r := t.run(0); r.Page != from {
		return damaged(IndexObject, s.runsAt(), "segment %d starts with %+v", i, r)
	}
	for k := range s.frames {
		f := t.frame(k)
		at := s.offset + int64(k)*frameBytes
		switch {
		case t.frames[k*frameBytes+7]&^frameKnown != 0 || f.Plain == 0 || f.Plain > ix.chunkSize,
			f.Stored <= 0 || f.Stored > chunk.MaxFrame(ix.im.codec, f.Plain),
			end >= 0 && f.Offset != end, f.Offset > ix.pages-int64(f.Stored):
			return damaged(IndexObject, at, "frame %d: %+v", s.frameBase+k, f)
		case f.runs == 0 || int(f.firstRun) < next || int(f.firstRun)+int(f.runs) > s.runs:
			return damaged(IndexObject, at, "frame %d: %d runs from %d on", s.frameBase+k, f.runs, f.firstRun)
		}
		end = f.Offset + int64(f.Stored)
		if err := s.checkRuns(t, next, int(f.firstRun), &from); err != nil {
			return err
		}
		next = int(f.firstRun)
		pages := uint32(0)
		for range f.runs {
			r := t.run(next)
			if r.Kind != Stored || int(r.Frame) != s.frameBase+k || r.Offset != pages || r.Range().Empty() || r.Page < from {
				return damaged(IndexObject, s.runsAt()+int64(next)*runBytes, "run of frame %d: %+v", s.frameBase+k, r)
			}
			pages += r.Pages
			from = r.Range().End
			next++
		}
		if int(pages)<<page.Shift != f.Plain {
			return damaged(IndexObject, at, "frame %d has %d bytes, its runs %d pages", s.frameBase+k, f.Plain, pages)
		}
	}
	if err := s.checkRuns(t, next, s.runs, &from); err != nil {
		return err
	}
	if from > ix.SegmentRange(i).End {
		return damaged(IndexObject, s.runsAt(), "segment %d ends at %v, after the next one's beginning", i, from)
	}
	return nil
}

// checkRuns looks at the runs i to j of a segment, which belong to no frame.
func (s *segment) checkRuns(t *tables, i, j int, from *page.Addr) error {
	for ; i < j; i++ {
		r := t.run(i)
		if r.Kind != Zero || r.Range().Empty() || r.Page < *from {
			return damaged(IndexObject, s.runsAt()+int64(i)*runBytes, "run in no frame: %+v", r)
		}
		*from = r.Range().End
	}
	return nil
}

// checkBorders looks at what segment i alone does not show: that its frames go
// on, in the pages object, where those of the one before it end, as far as
// neighbours are loaded. The caller holds mu.
func (ix *Index) checkBorders(i int, t *tables) error {
	s := &ix.segs[i]
	if s.frames == 0 {
		return nil
	}
	if end, known := ix.framesEnd(i); known && t.frame(0).Offset != end {
		return damaged(IndexObject, s.offset, "frame %d: offset %d, not %d", s.frameBase, t.frame(0).Offset, end)
	}
	last := t.frame(s.frames - 1)
	if begin, known := ix.framesBegin(i + 1); known && last.Offset+int64(last.Stored) != begin {
		return damaged(IndexObject, s.offset, "frames of segment %d end at %d, not %d", i, last.Offset+int64(last.Stored), begin)
	}
	return nil
}

// framesEnd is where the frames of the segments before i end.
func (ix *Index) framesEnd(i int) (end int64, known bool) {
	for i--; i >= 0; i-- {
		if n := ix.segs[i].frames; n > 0 {
			t := ix.tables[i].Load()
			if t == nil {
				return 0, false
			}
			f := t.frame(n - 1)
			return f.Offset + int64(f.Stored), true
		}
	}
	return 0, true
}

// framesBegin is where the frames of the segments from i on begin.
func (ix *Index) framesBegin(i int) (begin int64, known bool) {
	for ; i < len(ix.segs); i++ {
		if ix.segs[i].frames > 0 {
			t := ix.tables[i].Load()
			if t == nil {
				return 0, false
			}
			return t.frame(0).Offset, true
		}
	}
	return ix.pages, true
}
