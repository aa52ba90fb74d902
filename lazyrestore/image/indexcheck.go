package image

import (
	"encoding/binary"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// checkSegment looks at every entry of segment i, whose tables t are: whatever
// the file says, the rest of the program can rely on the result. A fault may
// wait for it, so it takes entries apart itself: as structs they go by way of
// memory.
func (ix *Index) checkSegment(i int, t *tables) error {
	s := &ix.segs[i]
	next := 0 // run of the segment
	end := int64(-1)
	from := page.Addr(s.firstPage) << page.Shift
	if r := t.run(0); r.Page != from {
		return damaged(IndexObject, s.runsAt(), "segment %d starts with %+v", i, r)
	}
	le := binary.LittleEndian
	for k := range s.frames {
		at := s.offset + int64(k)*frameBytes
		b := t.frames[k*frameBytes:][:frameBytes]
		offset, stored, plain := int64(le.Uint64(b)&offsetMask), int(le.Uint32(b[8:])), int(t.framePages(k))<<page.Shift
		firstRun, runs := int(le.Uint32(b[16:])), int(le.Uint16(b[20:]))
		switch {
		case b[7]&^frameKnown != 0 || plain == 0 || plain > ix.chunkSize,
			stored == 0 || stored > plain && stored > chunk.MaxFrame(ix.im.codec, plain),
			end >= 0 && offset != end, offset > ix.pages-int64(stored):
			return damaged(IndexObject, at, "frame %d: %+v", s.frameBase+k, t.frame(k))
		case runs == 0 || firstRun < next || firstRun+runs > s.runs:
			return damaged(IndexObject, at, "frame %d: %d runs from %d on", s.frameBase+k, runs, firstRun)
		}
		end = offset + int64(stored)
		if next < firstRun {
			if err := s.checkRuns(t, next, firstRun, &from); err != nil {
				return err
			}
			next = firstRun
		}
		pages := 0
		for ; next < firstRun+runs; next++ {
			b := t.runs[next*runBytes:][:runBytes]
			word, n := le.Uint64(b), int(le.Uint16(b[12:]))
			run := page.RangeOf(page.Addr(word&pageMask<<page.Shift), uint64(n)<<page.Shift)
			if Kind(word>>kindShift) != Stored || int(le.Uint32(b[8:])) != s.frameBase+k || int(le.Uint16(b[14:])) != pages || run.Empty() || run.Start < from {
				return damaged(IndexObject, s.runsAt()+int64(next)*runBytes, "run of frame %d: %+v", s.frameBase+k, t.run(next))
			}
			pages += n
			from = run.End
		}
		if pages<<page.Shift != plain {
			return damaged(IndexObject, at, "frame %d has %d bytes, its runs %d pages", s.frameBase+k, plain, pages)
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
