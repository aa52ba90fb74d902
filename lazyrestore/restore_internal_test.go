package lazyrestore

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/native"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// Lazy pages of shared memory that no mapping shows would never come.
func TestRefusesHiddenPages(t *testing.T) {
	const size, other = 16 * page.Size, page.ImageShared + 32*page.Size
	vma := func(start, pages, offset page.Addr, file uint32) native.VMA {
		return native.VMA{Range: page.RangeOf(start, uint64(pages*page.Size)), Kind: native.SharedMemory, File: file, Offset: uint64(offset * page.Size)}
	}
	run := func(at page.Addr, pages int) imagetest.Run {
		return imagetest.Run{At: at, P: uffdtest.Pattern(1, pages*page.Size)}
	}
	low := page.Addr(1 << 30)
	for _, tt := range []struct {
		name    string
		vmas    []native.VMA
		eager   bool
		runs    []imagetest.Run
		refused bool
	}{
		{"all of it shown", []native.VMA{vma(low, 16, 0, 0)}, false, []imagetest.Run{run(page.ImageShared, 16)}, false},
		{"by two mappings", []native.VMA{vma(low, 8, 8, 0), vma(low*2, 8, 0, 0)}, false, []imagetest.Run{run(page.ImageShared, 16)}, false},
		{"a hole hidden", []native.VMA{vma(low, 8, 0, 0)}, false, []imagetest.Run{run(page.ImageShared, 8), run(other, 16)}, false},
		{"a page hidden", []native.VMA{vma(low, 8, 0, 0)}, false, []imagetest.Run{run(page.ImageShared, 9)}, true},
		{"the last hidden", []native.VMA{vma(low, 15, 0, 0)}, false, []imagetest.Run{run(page.ImageShared, 8), run(page.ImageShared+15*page.Size, 1)}, true},
		{"an object hidden, and nothing of it", nil, false, []imagetest.Run{run(other, 16)}, false},
		{"shown of another object", []native.VMA{vma(low, 8, 0, 0), vma(low*2, 16, 0, 1)}, false, []imagetest.Run{run(page.ImageShared, 9)}, true},
		{"eager", []native.VMA{vma(low, 8, 0, 0)}, true, []imagetest.Run{run(page.ImageShared, 9)}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			mem, _ := imagetest.Write(t, image.WriterOptions{Spec: chunk.Spec{Codec: chunk.LZ4}}, tt.runs...)
			img, err := image.Open(t.Context(), mem, image.OpenOptions{})
			if err != nil {
				t.Fatal(err)
			}
			r := &restorer{im: img, st: &native.State{VMAs: tt.vmas, Shared: []native.SharedObject{
				{Name: "a", Size: size, Image: page.ImageShared, Lazy: !tt.eager},
				{Name: "b", Size: size, Image: other},
			}}}
			var refused *RefusedError
			if err := r.checkHidden(t.Context()); errors.As(err, &refused) != tt.refused || !tt.refused && err != nil {
				t.Errorf("%v", err)
			}
		})
	}
}

// What is not permitted is not always for want of a privilege.
func TestExplainRebuild(t *testing.T) {
	for _, tt := range []struct {
		call  int
		errno unix.Errno
		want  bool
	}{
		{unix.SYS_PRCTL, unix.EPERM, true},
		{unix.SYS_SETGROUPS, unix.EPERM, true},
		{unix.SYS_PRCTL, unix.EINVAL, false},
		{unix.SYS_MMAP, unix.EPERM, false},
		{unix.SYS_EPOLL_CTL, unix.EPERM, false},
	} {
		var facility *FacilityError
		err := explainRebuild(&native.StepError{Call: tt.call, Step: "do it", Errno: tt.errno})
		if errors.As(err, &facility) != tt.want {
			t.Errorf("call %d: %v: %#v, want a privilege that lacks: %v", tt.call, tt.errno, err, tt.want)
		}
	}
}
