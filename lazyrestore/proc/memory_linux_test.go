package proc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// testMemory is our own memory with a layout that the tests know.
func testMemory(t *testing.T, pages int) (*Arena, []byte) {
	t.Helper()
	a, err := NewArena(pages * page.Size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	_, mem, err := a.Alloc(pages*page.Size, page.Size)
	if err != nil {
		t.Fatal(err)
	}
	return a, mem
}

func TestReadWriteMemory(t *testing.T) {
	a, mem := testMemory(t, 4)
	pid := os.Getpid()
	// More pieces than one call takes, of odd sizes, some empty.
	var want []byte
	var out, in []Transfer
	at := a.Base()
	for i := range 2500 {
		data := bytes.Repeat([]byte{byte(i)}, i%7)
		want = append(want, data...)
		out = append(out, Transfer{at, data})
		in = append(in, Transfer{at, make([]byte, len(data))})
		at += uint64(len(data))
	}
	n, err := WriteMemoryV(pid, out)
	if err != nil || n != len(want) || !bytes.Equal(mem[:n], want) {
		t.Fatalf("wrote %d of %d bytes: %v", n, len(want), err)
	}
	n, err = ReadMemoryV(pid, in)
	if err != nil || n != len(want) {
		t.Fatalf("read %d of %d bytes: %v", n, len(want), err)
	}
	for i := range in {
		if !bytes.Equal(in[i].Data, out[i].Data) {
			t.Fatalf("piece %d is %x, want %x", i, in[i].Data, out[i].Data)
		}
	}
}

func TestReadMemoryHole(t *testing.T) {
	a, mem := testMemory(t, 4)
	if err := unix.Mprotect(mem[2*page.Size:3*page.Size], unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4*page.Size)
	n, err := ReadMemory(os.Getpid(), a.Base()+8, buf[8:])
	var me *MemoryError
	if n != 2*page.Size-8 || !errors.As(err, &me) || me.Addr != page.Addr(a.Base()+2*page.Size) || !errors.Is(err, unix.EFAULT) {
		t.Errorf("%d bytes, %v; want %d and EFAULT at page 2", n, err, 2*page.Size-8)
	}
	if _, err := ReadMemory(1<<22+1, a.Base(), buf); !errors.Is(err, unix.ESRCH) {
		t.Errorf("no process: %v", err)
	}
}

func TestPageScanRequest(t *testing.T) {
	// From <linux/fs.h> by a C compiler.
	if pagemapScanRequest != 0xc0606610 {
		t.Errorf("PAGEMAP_SCAN is %#x", pagemapScanRequest)
	}
	for c, want := range map[Categories]string{
		1 << 0: "wpallowed", 1 << 1: "written", 1 << 2: "file", 1 << 3: "present", 1 << 4: "swapped",
		1 << 5: "zero", 1 << 6: "huge", 1 << 7: "softdirty", 1 << 8: "guard", 1<<9 | 8: "present|0x200",
	} {
		if c.String() != want {
			t.Errorf("%#x is %q, want %q", uint64(c), c, want)
		}
	}
}

func TestPagemapEntry(t *testing.T) {
	for e, want := range map[uint64]Categories{
		0:               0,
		1 << 63:         PagePresent | PageWritten,
		1<<63 | 1<<57:   PagePresent,
		1<<62 | 1<<55:   PageSwapped | PageSoftDirty | PageWritten,
		1<<63 | 1<<61:   PagePresent | PageFile | PageWritten,
		1<<58 | 1<<62:   PageGuard | PageSwapped | PageWritten,
		1<<63 | 0xfffff: PagePresent | PageWritten,
	} {
		if got := pagemapCategories(e); got != want {
			t.Errorf("%#x: %s, want %s", e, got, want)
		}
	}
}

// scan lists the pages of memory, relative to its start, in our own process.
func scan(t *testing.T, s *PageScanner, r page.Range, mask Categories) []string {
	t.Helper()
	var got []string
	err := s.Scan(r, func(p PageRun) error {
		got = append(got, fmt.Sprintf("%d+%d %s", (p.Start-r.Start)>>page.Shift, p.Pages(), p.Categories&mask))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestPageScan(t *testing.T) {
	for _, way := range []string{"ioctl", "read"} {
		t.Run(way, func(t *testing.T) {
			s, err := NewPageScanner(os.Getpid())
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			mask := PagePresent | PageFile
			if way == "ioctl" {
				uffdtest.Need(t, "pagemap_scan")
				mask |= PageZero
				if !s.Exact() {
					t.Fatal("the ioctl is not used")
				}
			}
			s.ioctl = way == "ioctl"
			// Small buffers: runs have to be joined across them.
			s.regions, s.entries = make([]pageRegion, 2), make([]byte, 16)
			a, mem := testMemory(t, 64)
			for _, i := range []int{3, 4, 5, 6, 7, 20, 40, 42, 44, 46, 63} {
				mem[i*page.Size] = 1
			}
			_ = mem[50*page.Size] // the zero page
			sink = mem[50*page.Size]
			zero := "50+1 present"
			if way == "ioctl" {
				zero = "50+1 present|zero"
			}
			want := []string{"3+5 present", "20+1 present", "40+1 present", "42+1 present", "44+1 present", "46+1 present", zero, "63+1 present"}
			r := page.RangeOf(page.Addr(a.Base()), 64*page.Size)
			if d := cmp.Diff(want, scan(t, s, r, mask)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

var sink byte

func TestPageScanGuard(t *testing.T) {
	a, mem := testMemory(t, 4)
	const guardInstall = 102 // MADV_GUARD_INSTALL
	if err := unix.Madvise(mem[page.Size:2*page.Size], guardInstall); err != nil {
		uffdtest.NeedFunc(t, "guard regions", func() error { return err })
	}
	s, err := NewPageScanner(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	got := scan(t, s, page.RangeOf(page.Addr(a.Base()), 4*page.Size), PagePresent|PageGuard)
	if d := cmp.Diff([]string{"1+1 guard"}, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestPageScanStops(t *testing.T) {
	s, err := NewPageScanner(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	a, mem := testMemory(t, 4)
	mem[0], mem[2*page.Size] = 1, 1
	calls, stop := 0, errors.New("stop")
	err = s.Scan(page.RangeOf(page.Addr(a.Base()), 4*page.Size), func(PageRun) error { calls++; return stop })
	if !errors.Is(err, stop) || calls != 1 {
		t.Errorf("%v after %d calls", err, calls)
	}
	if _, err := NewPageScanner(1<<22 + 1); !errors.Is(err, ErrNoProcess) {
		t.Errorf("no process: %v", err)
	}
}

func TestDataRanges(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sparse")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, at := range []int64{1 << 20, 3 << 20} {
		if _, err := f.WriteAt(make([]byte, 4096), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(5 << 20); err != nil {
		t.Fatal(err)
	}
	covered := page.Set{}
	if err := DataRanges(path, func(start, end uint64) error {
		covered.Add(page.Range{Start: page.Addr(start), End: page.Addr(end)})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, at := range []page.Addr{1 << 20, 3 << 20} {
		if !covered.Covers(page.RangeOf(at, 4096)) {
			t.Errorf("data at %s is not listed", at)
		}
	}
	if covered.Len() >= 5<<20 {
		t.Errorf("no holes: %d bytes", covered.Len())
	}
}
