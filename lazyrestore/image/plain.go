package image

import (
	"fmt"

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
	return &Image{src: src, codec: chunk.None, pages: object, plain: ix}, nil
}

// A plainIndex puts the index of a plain image together.
type plainIndex struct {
	*Index
	chunk uint64
	seg   segment
	frame frameEntry // begun: what of it is there
}

// add appends the pages of r.
func (p *plainIndex) add(r page.Range) {
	for !r.Empty() {
		part := page.RangeOf(r.Start, min(r.Len(), p.chunk-uint64(p.frame.Plain)))
		if p.frame.Plain == 0 {
			p.frame.Offset, p.frame.firstRun = p.pages, uint32(p.NumRuns()-p.seg.runBase)
		}
		p.runs = appendRun(p.runs, Run{
			Page: part.Start, Pages: uint32(part.Pages()),
			Frame: uint32(p.Frames()), Offset: uint32(p.frame.Plain >> page.Shift),
		})
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
	p.frames = appendFrame(p.frames, p.frame)
	p.frame = frameEntry{}
	if p.seg.frames = p.Frames() - p.seg.frameBase; p.seg.frames == segmentFrames {
		p.endSegment()
	}
}

func (p *plainIndex) endSegment() {
	p.seg.runs = p.NumRuns() - p.seg.runBase
	if p.seg.frames > 0 {
		p.segs = append(p.segs, p.seg)
	}
	p.seg = segment{frameBase: p.Frames(), runBase: p.NumRuns()}
}
