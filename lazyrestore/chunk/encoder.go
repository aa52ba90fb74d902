package chunk

import (
	"fmt"
	"math/bits"
	"slices"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

// An Encoder makes frames. It belongs to one goroutine; its tables are made
// with the first frame and used again for all others.
type Encoder struct {
	spec   Spec
	window int // of zstd, in bytes
	zstd   *zstd.Encoder
	lz4    *lz4Encoder
}

// NewEncoder is an encoder for spec; the error wraps ErrCodec.
func NewEncoder(spec Spec) (*Encoder, error) {
	if err := spec.Check(); err != nil {
		return nil, err
	}
	return &Encoder{spec: spec}, nil
}

// Room is the capacity beyond its length that dst needs so that Encode does
// not allocate for a chunk of n bytes. It is an upper bound of the frame too.
func (e *Encoder) Room(n int) int {
	switch e.spec.Codec {
	case Zstd:
		return RawZstdSize(n) + n>>8 + 64
	case S2:
		return max(s2.MaxEncodedLen(n), n)
	case LZ4:
		return lz4Room(n)
	default:
		return n
	}
}

// Encode appends plain's frame to dst, which must not overlap it, and reports
// whether it is stored raw because the codec would not have made it smaller.
// A frame is at most MaxFrame long. plain is at most MaxSize long.
func (e *Encoder) Encode(dst, plain []byte) (out []byte, raw bool) {
	if len(plain) == 0 {
		return dst, true
	}
	start := len(dst)
	dst = slices.Grow(dst, e.Room(len(plain)))
	scratch := dst[start:start:cap(dst)]
	var n int
	switch e.spec.Codec {
	case Zstd:
		n = e.encodeZstd(scratch, plain)
	case S2:
		n = e.encodeS2(scratch, plain)
	case LZ4:
		n = e.encodeLZ4(scratch, plain)
	case None:
	}
	switch {
	case n > 0:
		return dst[:start+n], false
	case e.spec.Codec == Zstd:
		return appendRawZstd(dst, plain), true
	default:
		return append(dst, plain...), true
	}
}

// encodeZstd puts plain's frame into the capacity of scratch and gives its
// length, or 0 where that would not be less than plain's.
func (e *Encoder) encodeZstd(scratch, plain []byte) int {
	if e.zstd == nil || len(plain) > e.window {
		// A window as large as the largest chunk would cost memory for
		// nothing: a frame never looks further back than its own chunk.
		e.window = max(DefaultSize, 1<<bits.Len(uint(len(plain)-1)))
		w, err := zstd.NewWriter(nil,
			zstd.WithEncoderLevel(zstd.EncoderLevel(max(e.spec.Level, 1))), zstd.WithEncoderConcurrency(1),
			zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true), zstd.WithSingleSegment(true),
			zstd.WithWindowSize(e.window))
		if err != nil {
			panic(fmt.Sprintf("chunk: zstd refuses constant options: %v", err))
		}
		e.zstd = w
	}
	return fits(e.zstd.EncodeAll(plain, scratch), scratch, plain)
}

// encodeS2 is encodeZstd's like for s2.
func (e *Encoder) encodeS2(scratch, plain []byte) int {
	if e.spec.Level == 2 {
		return fits(s2.EncodeBetter(scratch[:cap(scratch)], plain), scratch, plain)
	}
	return fits(s2.Encode(scratch[:cap(scratch)], plain), scratch, plain)
}

// fits is the length of out where it lies in scratch and is less than
// plain's, else 0.
func fits(out, scratch, plain []byte) int {
	if len(out) == 0 || len(out) >= len(plain) || &out[0] != &scratch[:1][0] {
		return 0
	}
	return len(out)
}

// encodeLZ4 is encodeZstd's like for lz4.
func (e *Encoder) encodeLZ4(scratch, plain []byte) int {
	if e.lz4 == nil {
		e.lz4 = new(lz4Encoder)
	}
	n := e.lz4.encode(scratch[:cap(scratch)], plain)
	if n >= len(plain) {
		return 0
	}
	return n
}
