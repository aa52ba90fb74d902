package chunk

import "encoding/binary"

// A chunk that zstd cannot shrink is stored as a zstd frame of raw blocks
// (RFC 8878, section 3.1.1): magic number, a descriptor that says "single
// segment, four bytes of content size", that size, and blocks of at most
// 128 KiB, each after its three-byte header.
const (
	zstdMagic      = 0xFD2FB528
	zstdDescriptor = 0xA0
	zstdHeader     = 4 + 1 + 4
	zstdBlock      = 128 << 10
	zstdBlockHead  = 3
)

// RawZstdSize is the length of a raw zstd frame that holds n bytes, n > 0.
func RawZstdSize(n int) int {
	return zstdHeader + (n+zstdBlock-1)/zstdBlock*zstdBlockHead + n
}

// appendRawZstd appends plain to dst as a zstd frame of raw blocks.
func appendRawZstd(dst, plain []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, zstdMagic)
	dst = append(dst, zstdDescriptor)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(plain)))
	for len(plain) > 0 {
		n := min(len(plain), zstdBlock)
		head := uint32(n) << 3 // bit 0: last block; bits 1 and 2: type, 0 is raw
		if n == len(plain) {
			head |= 1
		}
		dst = append(dst, byte(head), byte(head>>8), byte(head>>16))
		dst = append(dst, plain[:n]...)
		plain = plain[n:]
	}
	return dst
}

// decodeRawZstd fills dst from a frame that appendRawZstd made; it reports
// whether the frame is one and holds exactly len(dst) bytes.
func decodeRawZstd(dst, frame []byte) bool {
	if len(dst) == 0 || len(frame) != RawZstdSize(len(dst)) ||
		binary.LittleEndian.Uint32(frame) != zstdMagic || frame[4] != zstdDescriptor ||
		uint64(binary.LittleEndian.Uint32(frame[5:])) != uint64(len(dst)) {
		return false
	}
	frame = frame[zstdHeader:]
	for len(dst) > 0 {
		n := min(len(dst), zstdBlock)
		head := uint32(n) << 3
		if n == len(dst) {
			head |= 1
		}
		if uint32(frame[0])|uint32(frame[1])<<8|uint32(frame[2])<<16 != head {
			return false
		}
		copy(dst, frame[zstdBlockHead:zstdBlockHead+n])
		dst, frame = dst[n:], frame[zstdBlockHead+n:]
	}
	return true
}
