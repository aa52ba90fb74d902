package image

import (
	"fmt"
	"sync/atomic"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// NewPlain makes an image of pages that were not written by a Writer, and lie
// somewhere as they are: object of src holds the memory of parts, image
// addresses in ascending order, one part after the other. Frames are
// chunkSize bytes of it each, a multiple of the page size.
//
// There is nothing to check such pages by: frame readers give what src does.
// The image has neither manifest nor digest, and no object but this one.
func NewPlain(src Source, object string, parts []page.Range, chunkSize int) (*Image, error) {
	if chunkSize <= 0 || chunkSize%page.Size != 0 || chunkSize>>page.Shift > maxRunPages {
		return nil, fmt.Errorf("frames of %d bytes: no number of pages", chunkSize)
	}
	ix := &Index{chunkSize: chunkSize, unchecked: true}
	p := plainIndex{Index: ix, chunk: uint64(chunkSize)}
	last := page.Addr(0)
	for _, r := range parts {
		if r.Empty() || r.Start < last || !r.Start.Aligned() || !r.End.Aligned() {
			return nil, fmt.Errorf("pages %v after %v: parts are pages, and ascend", r, last)
		}
		last = r.End
		p.add(r)
	}
	p.endFrame()
	p.endSegment()
	ix.tables = make([]atomic.Pointer[tables], len(p.done))
	for i := range p.done {
		ix.tables[i].Store(&p.done[i])
	}
	return &Image{src: src, codec: chunk.None, pages: object, plain: ix}, nil
}

// A plainIndex puts the index of a plain image together.
type plainIndex struct {
	*Index
	chunk uint64
	done  []tables // of the segments
	seg   segment
	cur   tables     // of seg, which is begun
	frame frameEntry // begun: what of it is there
}

// add appends the pages of r.
func (p *plainIndex) add(r page.Range) {
	for !r.Empty() {
		part := page.RangeOf(r.Start, min(r.Len(), p.chunk-uint64(p.frame.Plain)))
		if p.frame.Plain == 0 {
			p.frame.Offset, p.frame.firstRun = p.pages, uint32(p.seg.runs)
		}
		if p.seg.runs == 0 {
			p.seg.firstPage = uint64(part.Start) >> page.Shift
		}
		p.cur.runs = appendRun(p.cur.runs, Run{
			Page: part.Start, Pages: uint32(part.Pages()),
			Frame: uint32(p.frames), Offset: uint32(p.frame.Plain >> page.Shift),
		})
		p.seg.runs++
		p.frame.runs++
		p.frame.Plain += int(part.Len())
		p.pages += int64(part.Len())
		r.Start = part.End
		if uint64(p.frame.Plain) == p.chunk {
			p.endFrame()
		}
	}
}

func (p *plainIndex) endFrame() {
	if p.frame.Plain == 0 {
		return
	}
	p.frame.Stored, p.frame.Raw = p.frame.Plain, true
	p.cur.frames = appendFrame(p.cur.frames, p.frame)
	p.frame = frameEntry{}
	p.frames++
	if p.seg.frames++; p.seg.frames == segmentFrames {
		p.endSegment()
	}
}

func (p *plainIndex) endSegment() {
	if p.seg.frames > 0 {
		p.runs += p.seg.runs
		p.segs, p.done = append(p.segs, p.seg), append(p.done, p.cur)
	}
	p.seg, p.cur = segment{frameBase: p.frames}, tables{}
}
