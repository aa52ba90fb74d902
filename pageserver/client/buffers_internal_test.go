package client

import "testing"

// A block takes memory for less than twice its bytes, and what is kept does not
// stand in the way of larger ones.
func TestBuffersFit(t *testing.T) {
	var b buffers
	for size := 2 * smallBlock; size <= largeBlock; size *= 2 {
		var last []byte
		for _, n := range []int{size/2 + 1, size * 3 / 4, size, size} {
			p := b.get(n)
			if len(p) != n || cap(p) != size {
				t.Errorf("%d bytes of %d for %d; want %d", len(p), cap(p), n, size)
			}
			last = b.get(n)
			b.put(last)
		}
		if p := b.get(size); &p[0] != &last[:1][0] {
			t.Errorf("what was given back of %d bytes is not used again", size)
		}
	}
	for _, n := range []int{1, smallBlock, largeBlock + 1} {
		p := b.get(n)
		if len(p) != n || cap(p) >= n+n/2+8 {
			t.Errorf("%d bytes of %d for %d", len(p), cap(p), n)
		}
		before := len(b.free)
		if b.put(p); len(b.free) != before {
			t.Errorf("%d bytes are kept", n)
		}
	}
	for range 2 * keptBuffers {
		b.put(make([]byte, largeBlock))
	}
	if len(b.free) != keptBuffers {
		t.Errorf("%d are kept, want %d", len(b.free), keptBuffers)
	}
}
