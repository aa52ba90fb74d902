package native

import (
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// Each eager page of the process is written once, from where eager.raw has it,
// and about half of them by the one who restores.
func TestPartEager(t *testing.T) {
	const worth = besideWorth / page.Size
	pages := func(at, n uint64) page.Range { return page.RangeOf(page.Addr(at*page.Size), n*page.Size) }
	fromHere := func(n uint64) uint64 { return n - n*ownShare/16 }
	for _, tt := range []struct {
		name   string
		eager  []Eager
		beside uint64 // pages
	}{
		{"none", nil, 0},
		{"few", []Eager{{pages(1, worth-1), 0}}, 0},
		{"few of the process", []Eager{{pages(1, 1), 0}, {pages(0, 2*worth), 1}}, 0},
		{"one run", []Eager{{pages(1, worth), 0}}, fromHere(worth)},
		{"an odd number", []Eager{{pages(1, worth+1), 0}}, fromHere(worth + 1)},
		{"behind an object's", []Eager{{pages(0, 3), 1}, {pages(7, worth), 0}}, fromHere(worth)},
		{"around an object's", []Eager{{pages(1, worth/2), 0}, {pages(0, 3), 1}, {pages(worth, worth/2), 0}}, fromHere(worth)},
		{"a long one last", []Eager{{pages(1, 1), 0}, {pages(3, 1), 0}, {pages(5, 3*worth), 0}}, fromHere(3*worth + 2)},
		{"a long one first", []Eager{{pages(1, 3*worth), 0}, {pages(4*worth, 2), 0}}, fromHere(3*worth + 2)},
	} {
		st := &State{Eager: tt.eager}
		own, beside := st.partEager()
		all := append(append([]eagerRun(nil), own...), beside...)
		var size, off uint64
		for _, r := range beside {
			size += r.Len()
		}
		if size != tt.beside*page.Size {
			t.Errorf("%s: %d pages are written from here, want %d", tt.name, size/page.Size, tt.beside)
		}
		for _, e := range tt.eager {
			for at := e.Start; at < e.End && e.Shared == 0; {
				if len(all) == 0 || all[0].Start != at || all[0].off != off+uint64(at-e.Start) || all[0].End > e.End {
					t.Fatalf("%s: not what follows at %v: %v", tt.name, at, all)
				}
				at, all = all[0].End, all[1:]
			}
			off += e.Len()
		}
		if len(all) > 0 {
			t.Errorf("%s: too many: %v", tt.name, all)
		}
	}
}
