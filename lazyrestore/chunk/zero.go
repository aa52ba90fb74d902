package chunk

import (
	"bytes"
	"encoding/binary"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// zeroPage is what others are compared with; it lies in the BSS.
var zeroPage [page.Size]byte

// IsZero reports whether all of p is zero. Most memory shows in its first
// words that it is not, so those are looked at first; the rest goes through
// the runtime's vector compare.
func IsZero(p []byte) bool {
	if len(p) >= 16 && binary.LittleEndian.Uint64(p)|binary.LittleEndian.Uint64(p[len(p)-8:]) != 0 {
		return false
	}
	for len(p) > page.Size {
		if !bytes.Equal(p[:page.Size], zeroPage[:]) {
			return false
		}
		p = p[page.Size:]
	}
	return bytes.Equal(p, zeroPage[:len(p)])
}
