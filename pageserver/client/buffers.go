package client

import (
	"math/bits"
	"slices"
	"sync"
)

// keptBuffers bounds the memory that waits to be used again.
const keptBuffers = 4

// buffers are memory for large blocks. Each is used again as soon as it has
// been read: it is in the processor's cache then, where fresh memory would
// have to be cleared, raise a fault for each page and be collected, which took
// as long as all else of receiving a block.
type buffers struct {
	mu   sync.Mutex
	free [][]byte // guarded by mu: of powers of two, that which was read last at the end
}

// get gives n bytes, which are not cleared, of memory for less than twice as many.
func (b *buffers) get(n int) []byte {
	if n <= smallBlock || n > largeBlock {
		return make([]byte, n)
	}
	size := 1 << bits.Len(uint(n-1))
	if p := b.again(size); p != nil {
		return p[:n]
	}
	return fresh(size)[:n]
}

// again is memory of size bytes that was used before; nil if there is none.
func (b *buffers) again(size int) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, p := range slices.Backward(b.free) {
		if cap(p) == size {
			b.free = slices.Delete(b.free, i, i+1)
			return p
		}
	}
	return nil
}

// put takes back what get gave. What was not used for longest makes way: blocks grow.
func (b *buffers) put(p []byte) {
	if cap(p) <= smallBlock || cap(p) > largeBlock {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.free) == keptBuffers {
		b.free = slices.Delete(b.free, 0, 1)
	}
	b.free = append(b.free, p)
}
