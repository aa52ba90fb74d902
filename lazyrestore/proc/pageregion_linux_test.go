package proc

import (
	"encoding/binary"
	"fmt"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// The scan that another process makes of its own pages is one that the kernel takes,
// and gives the runs of pages of either category.
func TestPageScanByWords(t *testing.T) {
	uffdtest.Need(t, "pagemap_scan")
	const scanned, room = 32, 3
	a, mem := testMemory(t, scanned+1)
	for _, i := range []int{3, 4, 20, 31} {
		mem[i*page.Size] = 1
	}
	want := []string{"3+2", "20+1", "31+1"}
	const guardInstall = 102 // MADV_GUARD_INSTALL
	if unix.Madvise(mem[5*page.Size:6*page.Size], guardInstall) == nil {
		want[0] = "3+3" // such a page counts as swapped out
	}
	arg := mem[scanned*page.Size:]
	vec := arg[PageScanSize:]
	at := a.Base() + scanned*page.Size
	for i, w := range PageScan(page.RangeOf(page.Addr(a.Base()), scanned*page.Size), PagePresent|PageSwapped, at+PageScanSize, room) {
		binary.NativeEndian.PutUint64(arg[8*i:], w)
	}
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), PageScanRequest, uintptr(at))
	if errno != 0 {
		t.Fatal(errno)
	}
	var got []string
	for i := range int(n) {
		r := PageRegion(vec[i*PageRegionSize:])
		got = append(got, fmt.Sprintf("%d+%d", (uint64(r.Start)-a.Base())/page.Size, r.Len()/page.Size))
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}
