package native

import (
	"errors"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// A page that is there is not missing, whatever a pager says: it may have
// copied the page, and the process written to it, without having booked it.
func TestStillMissing(t *testing.T) {
	const pages = 8
	mem, err := unix.Mmap(-1, 0, pages*page.Size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	for _, there := range []int{2, 3, 6} {
		mem[there*page.Size] = 1
	}
	scan, err := proc.NewPageScanner(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer scan.Close()
	base := addressOf(mem)
	part := func(from, to int, shared bool) page.Mapping {
		m := page.Mapping{Range: page.RangeOf(base+page.Addr(from)*page.Size, uint64(to-from)*page.Size), Image: 0x5000_0000 + page.Addr(from)*page.Size, PageSize: page.Size}
		if shared {
			m.Image, m.Shared = m.Image+page.ImageShared, true
		}
		return m
	}
	all := part(0, pages, false).Range
	registered := proc.VMA{Range: all, Flags: proc.VMUffdMissing}
	inShared, plain := registered, registered
	inShared.Shared, plain.Flags = true, 0
	beginning := registered
	beginning.End = part(0, 5, false).End
	for _, c := range []struct {
		name          string
		vmas          []proc.VMA
		missing, want []page.Mapping
	}{
		{
			"private",
			[]proc.VMA{registered},
			[]page.Mapping{part(0, 5, false), part(5, 8, false)},
			[]page.Mapping{part(0, 2, false), part(4, 5, false), part(5, 6, false), part(7, 8, false)},
		},
		{"shared", []proc.VMA{inShared}, []page.Mapping{part(0, 8, true)}, []page.Mapping{part(0, 8, true)}},
		{"registered with nobody", []proc.VMA{plain}, []page.Mapping{part(0, 5, false), part(5, 8, true)}, nil},
		{
			"registered in part",
			[]proc.VMA{beginning},
			[]page.Mapping{part(0, 8, false)},
			[]page.Mapping{part(0, 2, false), part(4, 5, false)},
		},
	} {
		got, err := stillMissing(scan, c.vmas, c.missing)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %+v, %v, want %+v", c.name, got, err, c.want)
		}
	}
}

// Shared memory is read though a pager joins its mapping with another, whose names are
// those that lead to it.
func TestObjectOutlastsNameOfMapping(t *testing.T) {
	fd, err := unix.MemfdCreate("outlasts", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if _, err := unix.Pwrite(fd, append(make([]byte, page.Size), "still there"...), 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(fd, 0, 2*page.Size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	c := &capture{pid: os.Getpid(), st: new(State), objects: make(map[objectID]*object)}
	first := mapFile(c.pid, page.RangeOf(addressOf(mem), page.Size)) // there were two
	o := c.object(objectID{st.Dev, st.Ino}, "/memfd:outlasts (deleted)", first, &st)
	var b [11]byte
	if err := o.read(page.RangeOf(page.Size, 11), b[:]); err != nil || string(b[:]) != "still there" {
		t.Errorf("read %q, %v", b, err)
	}
	some := false
	if err := o.dataRanges(func(_, _ uint64) error { some = true; return nil }); err != nil || !some {
		t.Errorf("no data found: %v", err)
	}
}

// So it is where mappings are joined all the time.
func TestObjectOutlastsManyNames(t *testing.T) {
	const size = 64
	fd, err := unix.MemfdCreate("outlasts", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := errors.Join(unix.Ftruncate(fd, size*page.Size), unix.Fstat(fd, &st)); err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(fd, 0, size*page.Size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	done, ended := make(chan struct{}), make(chan error)
	go func() {
		for i := 1; ; i = i%(size-1) + 1 {
			select {
			case <-done:
				ended <- nil
				return
			default:
			}
			part := mem[i*page.Size:]
			if err := errors.Join(unix.Mprotect(part, unix.PROT_NONE), unix.Mprotect(part, unix.PROT_READ)); err != nil {
				ended <- err
				return
			}
		}
	}()
	o := &object{pid: os.Getpid(), id: objectID{st.Dev, st.Ino}, path: mapFile(os.Getpid(), page.RangeOf(addressOf(mem), page.Size))}
	for range 300 {
		fd, err := o.open()
		if err != nil {
			t.Error(err)
			break
		}
		unix.Close(fd)
	}
	close(done)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
