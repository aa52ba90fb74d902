package native

import (
	"encoding/binary"
	"errors"
	"slices"
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
	for range foreign + 1 { // what is eager among that, and the guard behind it
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

// All that is lazy is looked at, and none of many files in between, nor the program.
func TestLooks(t *testing.T) {
	const base, size = 100 * page.Size, 8 * page.Size
	pages := func(from, to int) page.Range {
		return page.Range{Start: page.Addr(from * page.Size), End: page.Addr(to * page.Size)}
	}
	lazy := func(from, to int, lazy ...page.Range) VMA { return VMA{Range: pages(from, to), Lazy: lazy} }
	var files []VMA
	for i := range apart {
		files = append(files, VMA{Range: pages(40+i, 41+i)})
	}
	for _, tt := range []struct {
		name string
		vmas []VMA
		want []page.Range
	}{
		{"nothing lazy", files, nil},
		{"one mapping", []VMA{lazy(10, 20, pages(12, 14), pages(16, 18))}, []page.Range{pages(12, 18)}},
		{"neighbours", []VMA{lazy(10, 20, pages(12, 14)), lazy(20, 30, pages(25, 26))}, []page.Range{pages(12, 26)}},
		{"few files between", slices.Concat([]VMA{lazy(10, 20, pages(10, 20))}, files[1:], []VMA{lazy(60, 70, pages(60, 61))}), []page.Range{pages(10, 61)}},
		{"many files between", slices.Concat([]VMA{lazy(10, 20, pages(10, 20))}, files, []VMA{lazy(60, 70, pages(60, 61))}), []page.Range{pages(10, 20), pages(60, 61)}},
		{"many files around", slices.Concat(files, []VMA{lazy(60, 70, pages(60, 61))}, files), []page.Range{pages(60, 61)}},
		{"the program between", []VMA{lazy(10, 20, pages(10, 20)), lazy(110, 120, pages(110, 111))}, []page.Range{pages(10, 100), pages(108, 111)}},
		{"below the program, and above", []VMA{lazy(90, 100, pages(90, 100)), lazy(108, 120, pages(108, 120))}, []page.Range{pages(90, 100), pages(108, 120)}},
	} {
		b := &builder{st: &State{VMAs: tt.vmas}, main: &table{}}
		buf := make([]byte, size)
		b.prog = &program{base: base, buf: buf, arena: proc.ArenaOver(base, buf)}
		b.lookAround(b.main)
		var got []page.Range
		for i := range b.looks {
			got = append(got, b.looks[i].Range)
		}
		if b.prog.err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v at %v, want %v", tt.name, b.prog.err, got, tt.want)
		}
	}
}
