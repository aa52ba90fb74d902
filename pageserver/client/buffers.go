package client

import "sync"

// keptBuffers bounds the memory that waits to be used again.
const keptBuffers = 4

// buffers are memory for large blocks. Each is used again as soon as it has
// been read: it is in the processor's cache then, where fresh memory would
// have to be cleared, raise a fault for each page and be collected, which took
// as long as all else of receiving a block.
type buffers struct {
	mu   sync.Mutex
	free [][]byte // guarded by mu: of largeBlock bytes, that which was read last at the end
}

// get gives n bytes, which are not cleared.
func (b *buffers) get(n int) []byte {
	if n <= smallBlock || n > largeBlock {
		return make([]byte, n)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	last := len(b.free) - 1
	if last < 0 {
		return make([]byte, largeBlock)[:n]
	}
	p := b.free[last]
	b.free = b.free[:last]
	return p[:n]
}

// put takes back what get gave.
func (b *buffers) put(p []byte) {
	if cap(p) != largeBlock {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.free) < keptBuffers {
		b.free = append(b.free, p[:largeBlock])
	}
}
