package image

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// An indexWriter writes pages.idx as frames come in, in the order of the pages
// object. It holds one segment, and an entry for each that it has written.
type indexWriter struct {
	w         io.Writer
	chunkSize int

	at        int64 // bytes written
	pages     int64 // where the next frame starts in the pages object
	nFrames   uint64
	nRuns     uint64
	directory []byte

	frames, runs, digests []byte // of the segment in the making
}

func newIndexWriter(w io.Writer, chunkSize int) *indexWriter {
	return &indexWriter{w: w, chunkSize: chunkSize}
}

func (x *indexWriter) write(b []byte) error {
	n, err := x.w.Write(b)
	x.at += int64(n)
	return err
}

// start writes the header unless it has been written.
func (x *indexWriter) start() error {
	if x.at > 0 {
		return nil
	}
	head := append(make([]byte, 0, headerBytes), indexMagic...)
	head = binary.LittleEndian.AppendUint32(head, indexVersion)
	return x.write(binary.LittleEndian.AppendUint32(head, 0))
}

// add notes the next frame, whose Offset it sets, and its runs, whose Frame
// it sets.
func (x *indexWriter) add(f Frame, digest chunk.Digest, runs []Run) error {
	if err := x.start(); err != nil {
		return err
	}
	if x.nFrames >= maxFrames {
		return fmt.Errorf("%d frames in one image: choose larger chunks than %d bytes", x.nFrames, x.chunkSize)
	}
	f.Offset = x.pages
	x.frames = appendFrame(x.frames, frameEntry{Frame: f, firstRun: uint32(len(x.runs) / runBytes), runs: uint16(len(runs))})
	x.digests = append(x.digests, digest[:]...)
	for _, r := range runs {
		r.Frame = uint32(x.nFrames)
		x.runs = appendRun(x.runs, r)
	}
	x.pages += int64(f.Stored)
	x.nFrames++
	x.nRuns += uint64(len(runs))
	if len(x.frames) >= segmentFrames*frameBytes || len(x.runs) >= segmentRuns*runBytes {
		return x.flush()
	}
	return nil
}

// flush writes the segment in the making.
func (x *indexWriter) flush() error {
	if len(x.frames) == 0 {
		return nil
	}
	s := segment{
		offset:     x.at,
		firstPage:  uint64(decodeRun(x.runs).Page) >> page.Shift,
		frames:     len(x.frames) / frameBytes,
		runs:       len(x.runs) / runBytes,
		tablesSum:  chunk.UpdateChecksum(chunk.Checksum(x.frames), x.runs),
		digestsSum: chunk.Checksum(x.digests),
		tables:     tablesDigest(x.frames, x.runs),
		digests:    chunk.DigestOf(x.digests),
	}
	x.directory = appendSegment(x.directory, &s)
	for _, b := range [][]byte{x.frames, x.runs, x.digests} {
		if err := x.write(b); err != nil {
			return err
		}
	}
	x.frames, x.runs, x.digests = x.frames[:0], x.runs[:0], x.digests[:0]
	return nil
}

// finish writes the rest and gives the SHA-256 of the index's tail.
func (x *indexWriter) finish() (root [sha256.Size]byte, err error) {
	if err := x.start(); err != nil {
		return root, err
	}
	if err := x.flush(); err != nil {
		return root, err
	}
	tail := appendFooter(x.directory, footer{
		version: indexVersion, pageSize: page.Size, chunkSize: uint32(x.chunkSize),
		segments: uint32(len(x.directory) / segmentBytes), frames: x.nFrames, runs: x.nRuns,
		directory: x.at, pages: x.pages,
	})
	return sha256.Sum256(tail), x.write(tail)
}
