package native

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// Registers that the kernel might refuse are set before the first thread runs.
func TestTakes(t *testing.T) {
	own := make([]byte, 832)
	binary.NativeEndian.PutUint32(own[28:], 0xffff) // mask of MXCSR
	binary.NativeEndian.PutUint64(own[464:], 7)     // x87, SSE, AVX
	for _, tt := range []struct {
		name   string
		change func(*Thread)
		want   bool
	}{
		{"as most are", func(*Thread) {}, true},
		{"another size", func(th *Thread) { th.XState = th.XState[:576] }, false},
		{"a feature that is not here", func(th *Thread) { th.XState[512] = 1 << 5 }, false},
		{"a feature that has to be asked for", func(th *Thread) { th.XState[514] = 1 << 2 }, false},
		{"a compact layout", func(th *Thread) { th.XState[527] = 1 << 7 }, false},
		{"a reserved bit of MXCSR", func(th *Thread) { th.XState[26] = 1 }, false},
		{"another code segment", func(th *Thread) { th.Regs[proc.CS] = 0x23 }, false},
		{"another stack segment", func(th *Thread) { th.Regs[proc.SS] = 0 }, false},
		{"a data segment", func(th *Thread) { th.Regs[proc.GS] = 1 }, false},
		{"a base of the kernel's", func(th *Thread) { th.Regs[proc.FSBase] = 1 << 63 }, false},
	} {
		th := &Thread{XState: slices.Clone(own)}
		th.XState[512] = 3
		th.Regs[proc.CS], th.Regs[proc.SS] = 0x33, 0x2b
		tt.change(th)
		if got := takes(th, own); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
