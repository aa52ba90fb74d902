package pager

import (
	"context"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// Remaining is what the process that Serve was given still misses: each
// mapping is pages that are only in the image, or zero where that could not be
// told in time; pages of shared memory that are lost are among them. It is empty before Serve, once the process is resident, and for the moment in
// which it is not told yet what has moved where. While Serve runs pages come in, so what is
// listed may be there by the time it is looked at, but never the other way.
func (p *Pager) Remaining() []page.Mapping {
	var list []page.Mapping
	p.ofProcess(func(se *session, s *space) {
		s.missing(se.pages, func(m page.Mapping) {
			if k := len(list) - 1; k >= 0 && joins(list[k], m) {
				list[k].End = m.End
				return
			}
			list = append(list, m)
		})
	})
	return list
}

// ofProcess has look called for what is served of the process that Serve was given, inside the
// gate and with all of the index that could be loaded in time; not where that is not settled.
func (p *Pager) ofProcess(look func(se *session, s *space)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	se := p.session
	if se == nil || p.over {
		return
	}
	p.loadMissing(se)
	se.gate.enter()
	defer se.gate.leave()
	for _, s := range *se.spaces.Load() {
		if s.id == 0 && !s.ended.Load() && !s.unsettled() {
			look(se, s)
		}
	}
}

// A Part is shared memory that is missing and that no mapping shows, as far as is known: one may have grown by it.
type Part struct {
	page.Range             // its image addresses
	Object     page.Object // what it is of
}

// Parted is such memory of the process that Serve was given, or zeros where that could not be told in time; some of
// it may have come by way of another process that shares it. It is empty when Remaining is for
// another reason than that nothing is missing.
func (p *Pager) Parted() []Part {
	var list []Part
	p.ofProcess(func(se *session, s *space) {
		s.eachPart(se.pages, func(part Part) { list = append(list, part) })
	})
	return list
}

// Unknown is memory of the process that Serve was given of which nobody knows what it
// holds: shared memory that was missing when it was dropped, or removed, and not seen which.
// Remaining has it too, and the image what it held before.
func (p *Pager) Unknown() []page.Range {
	p.mu.Lock()
	defer p.mu.Unlock()
	se := p.session
	if se == nil || p.over {
		return nil
	}
	se.gate.enter()
	defer se.gate.leave()
	var list []page.Range
	for _, s := range *se.spaces.Load() {
		if s.id == 0 && !s.ended.Load() {
			se.unknown(s, func(r page.Range) { list = append(list, r) })
		}
	}
	return list
}

// remainingTime is how long Remaining waits for parts of the index.
const remainingTime = time.Second

// loadMissing loads what it can of the index, so that missing can tell pages
// of zeros from others.
func (p *Pager) loadMissing(se *session) {
	ctx, cancel := context.WithTimeout(context.Background(), remainingTime)
	defer cancel()
	t := se.pages
	for i := range t.Segments() {
		if t.Loaded(i) {
			continue
		}
		if err := t.Load(ctx, i, t.mem.alloc(t.SegmentBytes(i)), image.Background); err != nil {
			se.log.Debug("load the index", "segment", i, "error", err)
			return
		}
	}
}

// joins reports whether b goes on where a ends.
func joins(a, b page.Mapping) bool {
	return a.End == b.Start && a.ImageAddr(a.End) == b.Image && a.PageSize == b.PageSize && a.Shared == b.Shared
}
