package native

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// Mappings of a file are made by one call where the kernel has one mapping of them
// until the protection of some changes, and nowhere else.
func TestOneFile(t *testing.T) {
	const r, rw = unix.PROT_READ, unix.PROT_READ | unix.PROT_WRITE
	of := func(start, end, offset page.Addr) VMA {
		return VMA{Range: page.Range{Start: start * page.Size, End: end * page.Size}, Kind: PrivateFile, Prot: rw, Offset: uint64(offset) * page.Size, File: 1}
	}
	for _, tt := range []struct {
		name   string
		change func(*VMA)
		want   int
	}{
		{"what follows", func(*VMA) {}, 3},
		{"another protection for now", func(v *VMA) { v.Prot = r }, 1},
		{"a gap in memory", func(v *VMA) { v.Start += page.Size; v.Offset += page.Size }, 1},
		{"a gap in the file", func(v *VMA) { v.Offset += page.Size }, 1},
		{"another file", func(v *VMA) { v.File = 2 }, 1},
		{"another way of opening it", func(v *VMA) { v.Write = true }, 1},
		{"other flags", func(v *VMA) { v.Flags = unix.MAP_NORESERVE }, 1},
		{"memory", func(v *VMA) { v.Kind = Anonymous }, 1},
	} {
		vs := []VMA{of(10, 12, 3), of(12, 13, 5), of(13, 15, 6)}
		tt.change(&vs[1])
		if got := oneFile(vs, func(v *VMA) uint32 { return v.Prot }); got != tt.want {
			t.Errorf("%s: %d mappings by one call, want %d", tt.name, got, tt.want)
		}
	}
}

// Mappings of shared memory know what their object is, and show no other one's pages where they reach beyond its end.
func TestMappingsOfObjects(t *testing.T) {
	const low = page.Addr(1 << 30)
	shared := func(start page.Addr, file uint32, offset, pages page.Addr) VMA {
		r := page.RangeOf(start, uint64(pages*page.Size))
		return VMA{Range: r, Kind: SharedMemory, File: file, Offset: uint64(offset * page.Size), Lazy: []page.Range{r}}
	}
	first, second := page.ImageShared, page.ImageShared+9*page.Size
	st := &State{
		Shared: []SharedObject{{Size: 7*page.Size + 1, Image: first}, {Size: 4 * page.Size, Image: second}},
		VMAs:   []VMA{shared(low, 0, 4, 8), shared(low*2, 0, 9, 2), shared(low*3, 1, 0, 4)},
	}
	of := func(start, image page.Addr, pages uint64, object page.Range) page.Mapping {
		return page.Mapping{Range: page.RangeOf(start, pages*page.Size), Image: image, PageSize: page.Size, Shared: true, Object: page.Object{Range: object, Dev: 3, Inode: uint64(object.Start)}}
	}
	want := []page.Mapping{
		of(low, first+4*page.Size, 4, page.RangeOf(first, 8*page.Size)),
		of(low*3, second, 4, page.RangeOf(second, 4*page.Size)),
	}
	if got := st.mappings([]objectID{{3, uint64(first)}, {3, uint64(second)}}); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
