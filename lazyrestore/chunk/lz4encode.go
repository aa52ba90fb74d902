package chunk

import (
	"encoding/binary"
	"math/bits"
)

// This is an encoder for LZ4 blocks (lz4_Block_format.md of the lz4
// repository) made for memory. Where the next bytes match nothing it goes on at
// the next 32-bit word instead of the next byte, as what repeats in memory,
// pointers and numbers, begins at one; a match is made longer backwards to
// where it really starts. Positions have 16 bits, so that the table stays in
// the first-level cache. Against pierrec/lz4, which tries every byte, in one run
// on one core (dump writable memory to a file, then
// CHUNK_BENCH_FILE=FILE go test -bench LZ4): the heap of a Python program at 1.7
// times the speed, with a ratio of 3.4 for 3.2; LAMMPS 1.3 times, 1.70 for
// 1.76.

const (
	lz4Segment   = 1 << 16 // offsets are less: matches stay within a segment
	lz4TableBits = 13
	lz4MinMatch  = 4
	lz4LastLits  = 5  // a block ends in at least as many literals
	lz4Margin    = 12 // and its last match starts at least as far from the end
	lz4Word      = 4  // bytes
	lz4Patience  = 32 // after as many misses in a row, words are left out
)

// An lz4Encoder is the scratch memory of encodes.
type lz4Encoder struct {
	table [1 << lz4TableBits]uint16 // by hash: position in the segment
}

// encode puts src into dst as one LZ4 block and gives its length; 0 where it
// does not fit. Positions are never trusted: what the table says is compared
// with src before it is used.
func (e *lz4Encoder) encode(dst, src []byte) int {
	anchor, d := 0, 0 // src[:anchor] is in dst[:d]
	for start := 0; start < len(src)-lz4Margin; start += lz4Segment {
		anchor, d = e.segment(dst, src, start, anchor, d)
		if d < 0 {
			return 0
		}
	}
	d = lz4Literals(dst, d, src[anchor:], 0)
	return max(d, 0)
}

// segment encodes the matches of the segment that begins at start. It returns
// the new anchor and d; d is -1 where dst is full.
func (e *lz4Encoder) segment(dst, src []byte, start, anchor, d int) (int, int) {
	clear(e.table[:])
	seg := src[start:]
	limit := min(len(seg)-lz4Margin, lz4Segment) // of the first byte of a match
	s := max(anchor-start, 0) + 1                // position 0 is where an empty entry points
	for {
		// Find a match: hash the next bytes, look where they were seen.
		misses := 0
		var ref int
		for {
			if s >= limit {
				return anchor, d
			}
			cur := binary.LittleEndian.Uint64(seg[s : s+8])
			h := lz4Hash(cur)
			ref = int(e.table[h])
			e.table[h] = uint16(s)
			if uint32(cur) == binary.LittleEndian.Uint32(seg[ref:ref+4]) && ref < s {
				break
			}
			misses++
			s = (s+lz4Word)&^(lz4Word-1) + misses/lz4Patience*lz4Word
		}
		// Make it longer, backwards into the literals and forwards.
		for s+start > anchor && ref > 0 && seg[s-1] == seg[ref-1] {
			s--
			ref--
		}
		n := lz4MinMatch + matchLen(seg[:len(seg)-lz4LastLits], s+lz4MinMatch, ref+lz4MinMatch)
		d = lz4Literals(dst, d, src[anchor:start+s], n)
		if d < 0 || d+2 > len(dst) {
			return anchor, -1
		}
		d = lz4Match(dst, d, s-ref, n)
		if d < 0 {
			return anchor, -1
		}
		s += n
		anchor = start + s
		if s < limit {
			// One position within the match, as the reference encoder does.
			e.table[lz4Hash(binary.LittleEndian.Uint64(seg[s-2:s+6]))] = uint16(s - 2)
		}
	}
}

// lz4Hash is a table index from the first five bytes of v.
func lz4Hash(v uint64) uint32 {
	return uint32((v << 24 * 889523592379) >> (64 - lz4TableBits))
}

// matchLen is how many bytes from a on are those from b on, b < a, up to the
// end of p.
func matchLen(p []byte, a, b int) int {
	start := a
	for a+8 <= len(p) {
		if x := binary.LittleEndian.Uint64(p[a:a+8]) ^ binary.LittleEndian.Uint64(p[b:b+8]); x != 0 {
			return a - start + bits.TrailingZeros64(x)>>3
		}
		a += 8
		b += 8
	}
	for a < len(p) && p[a] == p[b] {
		a++
		b++
	}
	return a - start
}

// lz4Literals puts a token and its literals at dst[d:], for a match of n bytes
// to follow, or none at the end of the block if n is 0. It gives the new d, -1
// where dst is full.
func lz4Literals(dst []byte, d int, lits []byte, n int) int {
	if d+1+len(lits)/255+1+len(lits) > len(dst) {
		return -1
	}
	token := byte(0)
	if n > 0 {
		token = byte(min(n-lz4MinMatch, 15))
	}
	if len(lits) < 15 {
		dst[d] = token | byte(len(lits))<<4
		d++
	} else {
		dst[d] = token | 0xF0
		d = lz4Length(dst, d+1, len(lits)-15)
	}
	return d + copy(dst[d:], lits)
}

// lz4Match puts an offset and what of the length n is not in the token at
// dst[d:], which has room for the offset.
func lz4Match(dst []byte, d, offset, n int) int {
	binary.LittleEndian.PutUint16(dst[d:], uint16(offset))
	d += 2
	if n -= lz4MinMatch + 15; n >= 0 {
		if d+n/255+1 > len(dst) {
			return -1
		}
		d = lz4Length(dst, d, n)
	}
	return d
}

// lz4Length puts a length at dst[d:]: bytes of 255 and a smaller one.
func lz4Length(dst []byte, d, n int) int {
	for n >= 255 {
		dst[d] = 255
		d++
		n -= 255
	}
	dst[d] = byte(n)
	return d + 1
}
