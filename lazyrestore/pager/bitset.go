package pager

import (
	"math/bits"
	"sync/atomic"
)

// A bitset is a fixed number of bits that any number of goroutines may set
// and read at once.
type bitset struct {
	words []uint64
	n     int
}

func newBitset(n int) bitset { return bitset{make([]uint64, (n+63)/64), n} }

// set sets bit i and reports whether it was clear.
func (b *bitset) set(i int) bool {
	m := uint64(1) << (i & 63)
	return atomic.OrUint64(&b.words[i>>6], m)&m == 0
}

// clear clears bit i.
func (b *bitset) clear(i int) { atomic.AndUint64(&b.words[i>>6], ^(uint64(1) << (i & 63))) }

func (b *bitset) get(i int) bool {
	return atomic.LoadUint64(&b.words[i>>6])&(1<<(i&63)) != 0
}

// setRange sets the bits from i up to j and returns how many were clear.
func (b *bitset) setRange(i, j int) int {
	changed := 0
	for i < j {
		m := wordMask(i, j)
		changed += bits.OnesCount64(m &^ atomic.OrUint64(&b.words[i>>6], m))
		i = (i | 63) + 1
	}
	return changed
}

// nextClear is the first clear bit at or after i and before j, or j.
func (b *bitset) nextClear(i, j int) int {
	for i < j {
		if w := ^atomic.LoadUint64(&b.words[i>>6]) & wordMask(i, j); w != 0 {
			return i&^63 + bits.TrailingZeros64(w)
		}
		i = (i | 63) + 1
	}
	return j
}

// nextSet is the first set bit at or after i and before j, or j.
func (b *bitset) nextSet(i, j int) int {
	for i < j {
		if w := atomic.LoadUint64(&b.words[i>>6]) & wordMask(i, j); w != 0 {
			return i&^63 + bits.TrailingZeros64(w)
		}
		i = (i | 63) + 1
	}
	return j
}

// clears is how many bits from i up to j are clear.
func (b *bitset) clears(i, j int) int {
	n := 0
	for i < j {
		n += bits.OnesCount64(^atomic.LoadUint64(&b.words[i>>6]) & wordMask(i, j))
		i = (i | 63) + 1
	}
	return n
}

// clone is an independent copy.
func (b *bitset) clone() bitset {
	c := newBitset(b.n)
	for i := range b.words {
		if w := atomic.LoadUint64(&b.words[i]); w != 0 { // else the kernel need not give that memory
			c.words[i] = w
		}
	}
	return c
}

// wordMask has the bits of i's word that lie from i up to j.
func wordMask(i, j int) uint64 {
	m := ^uint64(0) << (i & 63)
	if rest := j - i&^63; rest < 64 {
		m &= 1<<rest - 1
	}
	return m
}
