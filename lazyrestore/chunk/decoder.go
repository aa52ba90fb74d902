package chunk

import (
	"errors"
	"fmt"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// ErrFrame is wrapped by every error of a frame that does not decode to the
// chunk it should.
var ErrFrame = errors.New("bad frame")

// A Decoder reads frames of one codec. It belongs to one goroutine; what it
// needs is made with the first frame.
type Decoder struct {
	codec Codec
	zstd  *zstd.Decoder
}

// NewDecoder is a decoder for c's frames. It cannot fail: a codec that does
// not exist fails with its first frame.
func NewDecoder(c Codec) *Decoder { return &Decoder{codec: c} }

// Decode fills dst from frame, which must hold exactly len(dst) bytes of plain
// data; raw says whether the frame was stored raw. The error wraps ErrFrame,
// and dst's content is then undefined. A frame never makes Decode allocate
// more than a codec's fixed tables.
func (d *Decoder) Decode(dst, frame []byte, raw bool) error {
	if raw && d.codec != Zstd {
		if len(frame) != len(dst) {
			return fmt.Errorf("%w: %d raw bytes for a chunk of %d", ErrFrame, len(frame), len(dst))
		}
		copy(dst, frame)
		return nil
	}
	switch d.codec {
	case Zstd:
		if raw {
			if !decodeRawZstd(dst, frame) {
				return fmt.Errorf("%w: not %d bytes in raw zstd blocks", ErrFrame, len(dst))
			}
			return nil
		}
		return d.decodeZstd(dst, frame)
	case S2:
		return decodeS2(dst, frame)
	case LZ4:
		n, err := lz4.UncompressBlock(frame, dst)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrFrame, err)
		}
		return checkLen(n, dst)
	case None:
		return fmt.Errorf("%w: compressed, with the codec none", ErrFrame)
	default:
		return fmt.Errorf("%w: %w %s", ErrFrame, ErrCodec, d.codec)
	}
}

func (d *Decoder) decodeZstd(dst, frame []byte) error {
	if d.zstd == nil {
		r, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(MaxSize), zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			return fmt.Errorf("make a zstd decoder: %w", err)
		}
		d.zstd = r
	}
	out, err := d.zstd.DecodeAll(frame, dst[:0:len(dst)])
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFrame, err)
	}
	return checkLen(len(out), dst)
}

func decodeS2(dst, frame []byte) error {
	n, err := s2.DecodedLen(frame)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFrame, err)
	}
	if err := checkLen(n, dst); err != nil {
		return err
	}
	if _, err := s2.Decode(dst, frame); err != nil {
		return fmt.Errorf("%w: %w", ErrFrame, err)
	}
	return nil
}

func checkLen(n int, dst []byte) error {
	if n != len(dst) {
		return fmt.Errorf("%w: %d bytes in a chunk of %d", ErrFrame, n, len(dst))
	}
	return nil
}

// Close frees the decoder's goroutines and tables, if it has any. The Decoder
// may be used again afterwards.
func (d *Decoder) Close() {
	if d.zstd != nil {
		d.zstd.Close()
		d.zstd = nil
	}
}
