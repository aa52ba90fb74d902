package native

import (
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// The program lies where nothing of the process will be, the vDSO neither.
func TestHole(t *testing.T) {
	vma := func(start, end page.Addr) VMA { return VMA{Range: page.Range{Start: start, End: end}} }
	const gib = 1 << 30
	for _, tt := range []struct {
		name string
		vdso page.Range
		vmas []VMA
		want page.Range // in which it is in the middle
	}{
		{"nothing", page.Range{}, nil, page.Range{Start: 1 << 20, End: taskSize}},
		{"two gaps", page.Range{}, []VMA{vma(gib, 2*gib), vma(4*gib, taskSize)}, page.Range{Start: 2 * gib, End: 4 * gib}},
		{"the vDSO in the larger", page.RangeOf(3*gib, 0x4000), []VMA{vma(2*gib, 2*gib+gib/2), vma(4*gib, taskSize)}, page.Range{Start: 1 << 20, End: 2 * gib}},
		{"the vDSO behind all", page.RangeOf(6*gib, 0x4000), []VMA{vma(2*gib, 4*gib)}, page.Range{Start: 6*gib + 0x4000, End: taskSize}},
		{"the vDSO before all", page.RangeOf(2*gib, 0x4000), []VMA{vma(5*gib, taskSize)}, page.Range{Start: 2*gib + 0x4000, End: 5 * gib}},
	} {
		st := &State{VMAs: tt.vmas, VDSO: VDSO{Map: tt.vdso.Start, Size: tt.vdso.Len()}}
		if got, want := st.hole(), (tt.want.Start + page.Addr(tt.want.Len()/2)).Down(); got != want {
			t.Errorf("%s: %v, want %v", tt.name, got, want)
		}
	}
}
