package native

import (
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// What a look finds is someone else's where it is to come lazily, and nobody knows
// where the kernel does not say.
func TestUntouched(t *testing.T) {
	pages := func(from, to int) page.Range {
		return page.Range{Start: page.Addr(from * page.Size), End: page.Addr(to * page.Size)}
	}
	st := &State{
		VMAs: []VMA{
			{Range: pages(10, 20), Lazy: []page.Range{pages(12, 14), pages(16, 20)}},
			{Range: pages(20, 30), Lazy: []page.Range{pages(20, 22)}},
			{Range: pages(40, 50)},
		},
		Eager:  []Eager{{Range: pages(10, 12)}, {Range: pages(16, 18)}},
		Guards: []page.Range{pages(18, 19)},
	}
	var full []page.Range
	for range lookRoom(st) {
		full = append(full, pages(10, 11))
	}
	enosys, enotty := -int64(unix.ENOSYS), -int64(unix.ENOTTY)
	for _, tt := range []struct {
		name    string
		found   []page.Range
		result  int64 // if not 0, instead of their number
		touched bool
	}{
		{name: "nothing"},
		{name: "what is eager", found: []page.Range{pages(10, 12), pages(16, 18)}},
		{name: "neither eager nor lazy", found: []page.Range{pages(14, 16), pages(22, 30), pages(40, 50)}},
		{name: "between mappings, and behind the last", found: []page.Range{pages(30, 40), pages(50, 60)}},
		{name: "a lazy page", found: []page.Range{pages(10, 12), pages(13, 14)}, touched: true},
		{name: "a guard among what is lazy", found: []page.Range{pages(16, 19)}},
		{name: "half eager, half lazy", found: []page.Range{pages(11, 13)}, touched: true},
		{name: "half a guard, half lazy", found: []page.Range{pages(18, 20)}, touched: true},
		{name: "a run across all", found: []page.Range{pages(0, 60)}, touched: true},
		{name: "the last page of one mapping and the first of the next", found: []page.Range{pages(22, 41), pages(21, 22)}, touched: true},
		{name: "one less than there is room for", found: full[1:]},
		{name: "as many as there is room for", found: full, touched: true},
		{name: "no PAGEMAP_SCAN", found: []page.Range{pages(13, 14)}, result: enotty},
		{name: "no /proc", found: []page.Range{pages(13, 14)}, result: enosys},
		{name: "not run", found: []page.Range{pages(13, 14)}, result: proc.NotRun},
	} {
		t.Run(tt.name, func(t *testing.T) {
			const base = 1 << 40
			buf := make([]byte, 8*page.Size)
			b := &builder{st: st, eager: page.SetOf(eagerRanges(st.Eager)...), main: &table{}}
			b.prog = &program{base: base, buf: buf, arena: proc.ArenaOver(base, buf)}
			b.prog.alloc(page.Size)
			b.lookAround(b.main)
			if err := b.prog.hand(b.main, true); err != nil {
				t.Fatal(err)
			}
			l := b.looks[0]
			for i, r := range tt.found {
				binary.NativeEndian.PutUint64(l.regions[i*proc.PageRegionSize:], uint64(r.Start))
				binary.NativeEndian.PutUint64(l.regions[i*proc.PageRegionSize+8:], uint64(r.End))
			}
			result := int64(len(tt.found))
			if tt.result != 0 {
				result = tt.result
			}
			binary.NativeEndian.PutUint64(buf[b.prog.entry(b.main, l.step)+proc.CallSize-8:], uint64(result))
			if err := b.untouched(); errors.Is(err, ErrTouched) != tt.touched || err != nil && !tt.touched {
				t.Errorf("it says %v; touched: %v", err, tt.touched)
			}
		})
	}
}
