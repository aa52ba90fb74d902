package image

import (
	"encoding/binary"
	"fmt"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// The layout of pages.idx (FORMAT.md has it in words). A header; segments,
// each a table of frames, a table of runs and a table of digests; a directory
// of the segments; a footer. All numbers are little-endian. A segment is
// written as soon as it is full, so that a writer holds one whatever the size
// of the process; a reader finds the tables from the end of the file.
const (
	indexMagic   = "lzrindex"
	indexVersion = 1

	headerBytes  = 16
	frameBytes   = 24
	pagesOffset  = 22 // in a frame: how many pages it holds
	runBytes     = 16
	digestBytes  = chunk.DigestSize
	segmentBytes = 64 // an entry of the directory
	footerBytes  = 64

	// A segment ends with the frame that reaches one of these.
	segmentFrames = 1 << 10
	segmentRuns   = 4 << 10
	maxSegment    = 64 << 20 // bytes of one that is read
)

// A frame's first word: where it starts, and flags.
const (
	offsetBits  = 56
	offsetMask  = 1<<offsetBits - 1
	frameRaw    = 1 << 0 // stored as it is
	frameKnown  = frameRaw
	kindShift   = 64 - page.Shift // of a run's first word; below it the page number
	pageMask    = 1<<kindShift - 1
	maxFrames   = 1<<32 - 1
	maxRunPages = 1<<16 - 1
)

// A Kind says where a run's pages come from.
type Kind uint16

// The kinds of version 1. Numbers from 2 up to 4095 are kept for pages that
// lie in a layer below.
const (
	Stored Kind = 0 // in a frame of this image
	Zero   Kind = 1 // zero pages, whatever a layer below has; in no frame
)

// A Run is adjacent pages of one kind.
type Run struct {
	Page   page.Addr // image address of the first page
	Pages  uint32
	Kind   Kind
	Frame  uint32 // that holds them
	Offset uint32 // of the first page in the frame's plain data, in pages
}

// Range is the image addresses of the run's pages.
func (r Run) Range() page.Range { return page.RangeOf(r.Page, uint64(r.Pages)<<page.Shift) }

// A Frame is a chunk as stored.
type Frame struct {
	Offset   int64  // in the pages object
	Stored   int    // length there, in bytes
	Plain    int    // length of its plain data, in bytes
	Raw      bool   // stored as it is
	Checksum uint32 // CRC-32C of the stored bytes
}

// frameEntry is a frame as its table has it.
type frameEntry struct {
	Frame
	firstRun uint32 // in the segment's runs
	runs     uint16
}

func appendFrame(dst []byte, f frameEntry) []byte {
	word := uint64(f.Offset)
	if f.Raw {
		word |= frameRaw << offsetBits
	}
	dst = binary.LittleEndian.AppendUint64(dst, word)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(f.Stored))
	dst = binary.LittleEndian.AppendUint32(dst, f.Checksum)
	dst = binary.LittleEndian.AppendUint32(dst, f.firstRun)
	dst = binary.LittleEndian.AppendUint16(dst, f.runs)
	return binary.LittleEndian.AppendUint16(dst, uint16(f.Plain>>page.Shift))
}

func decodeFrame(b []byte) frameEntry {
	_ = b[frameBytes-1]
	word := binary.LittleEndian.Uint64(b)
	return frameEntry{
		Frame: Frame{
			Offset:   int64(word & offsetMask),
			Stored:   int(binary.LittleEndian.Uint32(b[8:])),
			Plain:    int(binary.LittleEndian.Uint16(b[pagesOffset:])) << page.Shift,
			Raw:      word>>offsetBits&frameRaw != 0,
			Checksum: binary.LittleEndian.Uint32(b[12:]),
		},
		firstRun: binary.LittleEndian.Uint32(b[16:]),
		runs:     binary.LittleEndian.Uint16(b[20:]),
	}
}

func appendRun(dst []byte, r Run) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, uint64(r.Page)>>page.Shift|uint64(r.Kind)<<kindShift)
	dst = binary.LittleEndian.AppendUint32(dst, r.Frame)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(r.Pages))
	return binary.LittleEndian.AppendUint16(dst, uint16(r.Offset))
}

func decodeRun(b []byte) Run {
	_ = b[runBytes-1]
	word := binary.LittleEndian.Uint64(b)
	return Run{
		Page:   page.Addr(word & pageMask << page.Shift),
		Kind:   Kind(word >> kindShift),
		Frame:  binary.LittleEndian.Uint32(b[8:]),
		Pages:  uint32(binary.LittleEndian.Uint16(b[12:])),
		Offset: uint32(binary.LittleEndian.Uint16(b[14:])),
	}
}

// A segment is an entry of the directory.
type segment struct {
	offset       int64  // of the frame table; runs and digests follow it
	firstPage    uint64 // number of the first run's first page
	frames, runs int
	tablesSum    uint32 // CRC-32C of frames and runs
	digestsSum   uint32
	tables       chunk.Digest // of frames and runs
	digests      chunk.Digest

	frameBase int // not stored: how many frames the segments before have
}

func (s *segment) runsAt() int64    { return s.offset + int64(s.frames)*frameBytes }
func (s *segment) digestsAt() int64 { return s.runsAt() + int64(s.runs)*runBytes }
func (s *segment) end() int64       { return s.digestsAt() + int64(s.frames)*digestBytes }

func appendSegment(dst []byte, s *segment) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, uint64(s.offset))
	dst = binary.LittleEndian.AppendUint64(dst, s.firstPage)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(s.frames))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(s.runs))
	dst = binary.LittleEndian.AppendUint32(dst, s.tablesSum)
	dst = binary.LittleEndian.AppendUint32(dst, s.digestsSum)
	dst = append(dst, s.tables[:]...)
	return append(dst, s.digests[:]...)
}

func decodeSegment(b []byte) segment {
	_ = b[segmentBytes-1]
	return segment{
		offset:     int64(binary.LittleEndian.Uint64(b)),
		firstPage:  binary.LittleEndian.Uint64(b[8:]),
		frames:     int(binary.LittleEndian.Uint32(b[16:])),
		runs:       int(binary.LittleEndian.Uint32(b[20:])),
		tablesSum:  binary.LittleEndian.Uint32(b[24:]),
		digestsSum: binary.LittleEndian.Uint32(b[28:]),
		tables:     chunk.Digest(b[32:48]),
		digests:    chunk.Digest(b[48:64]),
	}
}

// A footer ends pages.idx.
type footer struct {
	version   uint32
	pageSize  uint32
	chunkSize uint32
	segments  uint32
	flags     uint32 // none in version 1
	frames    uint64
	runs      uint64
	directory int64 // offset of the directory
	pages     int64 // where the last frame ends in the pages object
}

// appendFooter appends f and, as its last word, the CRC-32C of the directory
// (the whole of dst) and of all of the footer before that word.
func appendFooter(dst []byte, f footer) []byte {
	dst = append(dst, indexMagic...)
	for _, v := range []uint32{f.version, f.pageSize, f.chunkSize, f.segments, f.flags} {
		dst = binary.LittleEndian.AppendUint32(dst, v)
	}
	for _, v := range []uint64{f.frames, f.runs, uint64(f.directory), uint64(f.pages)} {
		dst = binary.LittleEndian.AppendUint64(dst, v)
	}
	return binary.LittleEndian.AppendUint32(dst, chunk.Checksum(dst))
}

// parseFooter reads the footer at the end of tail, for an index of size bytes.
// Its checksum is left to parseTail, which has the directory too.
func parseFooter(tail []byte, size int64) (footer, error) {
	if len(tail) < footerBytes || size < headerBytes+footerBytes {
		return footer{}, damaged(IndexObject, 0, "%d bytes are too few for an index", size)
	}
	at := size - footerBytes
	b := tail[len(tail)-footerBytes:]
	if string(b[:8]) != indexMagic {
		return footer{}, damaged(IndexObject, at, "no footer")
	}
	le := binary.LittleEndian
	f := footer{
		version: le.Uint32(b[8:]), pageSize: le.Uint32(b[12:]), chunkSize: le.Uint32(b[16:]), segments: le.Uint32(b[20:]), flags: le.Uint32(b[24:]),
		frames: le.Uint64(b[28:]), runs: le.Uint64(b[36:]), directory: int64(le.Uint64(b[44:])), pages: int64(le.Uint64(b[52:])),
	}
	switch {
	case f.version > indexVersion:
		return footer{}, fmt.Errorf("%s: %w: the index has version %d, this program reads up to version %d",
			IndexObject, ErrVersion, f.version, indexVersion)
	case f.version != indexVersion || f.flags != 0 || f.pageSize != page.Size || !chunk.ValidSize(int(f.chunkSize)):
		return footer{}, damaged(IndexObject, at, "footer: version %d, flags %#x, page size %d, chunk size %d", f.version, f.flags, f.pageSize, f.chunkSize)
	case f.directory < headerBytes || f.directory != at-int64(f.segments)*segmentBytes:
		return footer{}, damaged(IndexObject, at, "footer: %d segments listed at %d, in %d bytes", f.segments, f.directory, size)
	case f.frames > maxFrames || f.pages < 0:
		return footer{}, damaged(IndexObject, at, "footer: %d frames in %d bytes", f.frames, f.pages)
	}
	return f, nil
}

// parseTail reads the directory and the footer, which tail is, of an index of
// size bytes. What it returns fits the file: tables lie side by side, from the
// header to the directory.
func parseTail(tail []byte, size int64) (footer, []segment, error) {
	f, err := parseFooter(tail, size)
	if err != nil {
		return footer{}, nil, err
	}
	if int64(len(tail)) != size-f.directory {
		return footer{}, nil, damaged(IndexObject, f.directory, "%d bytes of directory, not %d", len(tail), size-f.directory)
	}
	sum := binary.LittleEndian.Uint32(tail[len(tail)-4:])
	if got := chunk.Checksum(tail[:len(tail)-4]); got != sum {
		return footer{}, nil, damaged(IndexObject, f.directory, "directory: checksum is %08x, not %08x", got, sum)
	}
	segs := make([]segment, f.segments)
	at, frames, runs := int64(headerBytes), 0, 0
	for i := range segs {
		s := decodeSegment(tail[i*segmentBytes:])
		s.frameBase = frames
		if s.offset != at || s.end() > f.directory || s.end()-s.offset > maxSegment || s.runs == 0 || s.firstPage > pageMask || i > 0 && s.firstPage <= segs[i-1].firstPage {
			return footer{}, nil, damaged(IndexObject, f.directory+int64(i)*segmentBytes,
				"segment %d: %d frames and %d runs at %d, from page %#x on", i, s.frames, s.runs, s.offset, s.firstPage)
		}
		segs[i] = s
		at, frames, runs = s.end(), frames+s.frames, runs+s.runs
	}
	if frames == 0 && f.pages != 0 {
		return footer{}, nil, damaged(IndexObject, size-footerBytes, "footer: no frames, and they end at %d", f.pages)
	}
	if at != f.directory || uint64(frames) != f.frames || uint64(runs) != f.runs {
		return footer{}, nil, damaged(IndexObject, size-footerBytes, "footer: %d frames and %d runs, segments have %d and %d", f.frames, f.runs, frames, runs)
	}
	return f, segs, nil
}
