package image

import (
	"slices"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// An encoder makes a batch's frames.
type encoder struct {
	enc    *chunk.Encoder
	codec  chunk.Codec
	window int      // chunk size
	pages  [][]byte // of the chunk in the making: stretches of non-zero pages
	join   []byte   // a chunk whose pages are not adjacent in memory
	sha    chunk.Digester
	frames [][]byte       // of a batch
	hashes []chunk.Digest // of them
}

// encode makes the frames of b: one for each window of the image's addresses,
// aligned to the chunk size, that has a page which is not zero.
func (e *encoder) encode(b *batch) {
	if need := b.plain/e.window + 1; e.codec != chunk.None && cap(b.out) == 0 {
		b.out = make([]byte, 0, b.plain+e.enc.Room(e.window)+need*chunk.MaxFrame(e.codec, 1))
	}
	var window page.Addr
	firstRun := 0
	for _, pc := range b.pieces {
		for at, p := pc.at, pc.p; len(p) > 0; {
			w := at &^ page.Addr(e.window-1)
			if w != window || len(e.pages) == 0 {
				e.finish(b, firstRun)
				firstRun, window = len(b.runs), w
			}
			n := min(len(p), int(w+page.Addr(e.window)-at))
			e.add(b, firstRun, at, p[:n])
			at, p = at+page.Addr(n), p[n:]
		}
	}
	e.finish(b, firstRun)
	if e.codec != chunk.None {
		e.digests(b)
	}
}

// digests hashes the frames of b, which takes less time together than one by one.
func (e *encoder) digests(b *batch) {
	e.frames = e.frames[:0]
	out := b.out
	for i := range b.frames {
		n := b.frames[i].Stored
		e.frames, out = append(e.frames, out[:n]), out[n:]
	}
	e.hashes = slices.Grow(e.hashes[:0], len(e.frames))[:len(e.frames)]
	chunk.Digests(e.hashes, e.frames)
	for i, d := range e.hashes {
		b.frames[i].digest = d
	}
}

// add puts the pages of p that are not zero into the chunk in the making.
func (e *encoder) add(b *batch, firstRun int, at page.Addr, p []byte) {
	offset := uint32(0) // in the chunk, in pages
	if len(b.runs) > firstRun {
		last := b.runs[len(b.runs)-1]
		offset = last.Offset + last.Pages
	}
	for i := 0; i < len(p); {
		if chunk.IsZero(p[i : i+page.Size]) {
			b.zero += page.Size
			i += page.Size
			continue
		}
		j := i + page.Size
		for j < len(p) && !chunk.IsZero(p[j:j+page.Size]) {
			j += page.Size
		}
		pages := uint32(j-i) >> page.Shift
		b.runs = append(b.runs, Run{Page: at + page.Addr(i), Pages: pages, Offset: offset})
		e.pages = appendPart(e.pages, p[i:j])
		offset += pages
		i = j
	}
}

// finish encodes the chunk in the making, if it has a page.
func (e *encoder) finish(b *batch, firstRun int) {
	if len(e.pages) == 0 {
		return
	}
	f := outFrame{runs: len(b.runs) - firstRun}
	last := b.runs[len(b.runs)-1]
	f.Plain = int(last.Offset+last.Pages) << page.Shift
	if e.codec == chunk.None {
		e.finishRaw(b, &f)
	} else {
		start := len(b.out)
		out, raw := e.enc.Encode(b.out, e.joined())
		b.out, f.Raw = out, raw
		frame := out[start:]
		f.Stored, f.Checksum = len(frame), chunk.Checksum(frame)
		b.parts = append(b.parts[:0], out)
	}
	b.frames = append(b.frames, f)
	clear(e.pages)
	e.pages = e.pages[:0]
}

// finishRaw makes a frame of the pages where they are.
func (e *encoder) finishRaw(b *batch, f *outFrame) {
	f.Raw, f.Stored = true, f.Plain
	for _, p := range e.pages {
		f.Checksum = chunk.UpdateChecksum(f.Checksum, p)
		b.parts = appendPart(b.parts, p)
	}
	f.digest = e.sha.Digest(e.pages...)
}

// appendPart appends p to parts, to the last one where p follows it in memory:
// fewer and larger writes, and nothing to join.
func appendPart(parts [][]byte, p []byte) [][]byte {
	if n := len(parts); n > 0 {
		last := parts[n-1]
		if more := last[:min(len(last)+1, cap(last))]; len(more) > len(last) && &more[len(last)] == &p[0] {
			parts[n-1] = last[:len(last)+len(p)]
			return parts
		}
	}
	return append(parts, p)
}

// joined is the chunk's plain data in one piece.
func (e *encoder) joined() []byte {
	if len(e.pages) == 1 {
		return e.pages[0]
	}
	e.join = e.join[:0]
	for _, p := range e.pages {
		e.join = append(e.join, p...)
	}
	return e.join
}
