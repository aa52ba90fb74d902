package proc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// Categories is what is known of a page, in the bits of PAGEMAP_SCAN; see
// Documentation/admin-guide/mm/pagemap.rst of the kernel.
type Categories uint64

// Categories of a page.
const (
	PageWPAllowed Categories = 1 << iota // in memory that is write-protected asynchronously
	PageWritten                          // written since it was write-protected
	PageFile                             // of a file or shared memory
	PagePresent                          // in memory
	PageSwapped                          // in swap, or a marker in the page table such as a guard
	PageZero                             // the kernel's page of zeros
	PageHuge                             // part of a transparent huge page, or of hugetlb memory
	PageSoftDirty                        // written since soft-dirty bits were cleared
	PageGuard                            // a guard region (Linux 6.15)

	allCategories = 1<<9 - 1
)

// String lists the categories by name.
func (c Categories) String() string {
	names := [...]string{"wpallowed", "written", "file", "present", "swapped", "zero", "huge", "softdirty", "guard"}
	var s []string
	for i, n := range names {
		if c&(1<<i) != 0 {
			s = append(s, n)
		}
	}
	if rest := c &^ allCategories; rest != 0 {
		s = append(s, fmt.Sprintf("%#x", uint64(rest)))
	}
	return strings.Join(s, "|")
}

// PageRun is a run of adjacent pages of which the same is known.
type PageRun struct {
	page.Range
	Categories Categories
}

// pageInteresting are the categories of which a page must have one to be
// reported: others are just not there.
const pageInteresting = PagePresent | PageSwapped | PageGuard

// PageScanner lists the pages of a process. It holds /proc/PID/pagemap open and
// a buffer; it must not be used by two goroutines at once. Its user closes it.
type PageScanner struct {
	pid     int
	fd      int
	ioctl   bool       // PAGEMAP_SCAN is there (Linux 6.7)
	known   Categories // that the kernel takes
	regions []pageRegion
	entries []byte
}

const (
	scanRegions = 512      // of 24 bytes, in one call
	scanEntries = 64 << 10 // bytes of pagemap read at a time, 8 for a page
)

// NewPageScanner opens the pagemap of a process. The caller must be allowed to
// trace it.
func NewPageScanner(pid int) (*PageScanner, error) {
	fd, err := open(pathOf(pid, "pagemap"), unix.O_RDONLY)
	if err != nil {
		if goneError(err) {
			err = ErrNoProcess
		}
		return nil, fmt.Errorf("open %s: %w", pathOf(pid, "pagemap"), err)
	}
	s := &PageScanner{pid: pid, fd: fd, ioctl: true, known: allCategories}
	// A scan of nothing tells what the kernel knows.
	for {
		_, _, err = s.pagemapScan(page.Range{}, pageInteresting&s.known)
		if errors.Is(err, unix.EINVAL) && s.known&PageGuard != 0 {
			s.known &^= PageGuard
			continue
		}
		break
	}
	s.ioctl = err == nil
	return s, nil
}

// Close closes the pagemap.
func (s *PageScanner) Close() error { return unix.Close(s.fd) }

// Exact reports whether the kernel has PAGEMAP_SCAN. Without it PageZero,
// PageHuge and PageWPAllowed are never set, and the scan reads 8 bytes for each
// page of the range, present or not.
func (s *PageScanner) Exact() bool { return s.ioctl }

// Scan calls f for each run of pages in r, whose bounds lie on pages, that are
// in memory, in swap, or guarded, in order. Pages that were never touched are
// left out, and so are those of shared memory that this process has not
// touched, whatever the memory holds; a page that a userfaultfd is to fill
// looks the same. An error of f ends the scan and is returned.
func (s *PageScanner) Scan(r page.Range, f func(PageRun) error) error {
	m := merger{f: f}
	err := error(nil)
	if s.ioctl {
		err = s.scanIoctl(r, &m)
	} else {
		err = s.scanRead(r, &m)
	}
	if err == nil {
		err = m.flush()
	}
	return err
}

// merger joins runs that touch, which the size of a buffer has parted.
type merger struct {
	f    func(PageRun) error
	last PageRun
}

func (m *merger) add(r PageRun) error {
	if m.last.End == r.Start && m.last.Categories == r.Categories && !m.last.Empty() {
		m.last.End = r.End
		return nil
	}
	err := m.flush()
	m.last = r
	return err
}

func (m *merger) flush() error {
	r := m.last
	m.last = PageRun{}
	if r.Empty() {
		return nil
	}
	return m.f(r)
}

func (s *PageScanner) scanIoctl(r page.Range, m *merger) error {
	for !r.Empty() {
		regions, next, err := s.pagemapScan(r, pageInteresting&s.known)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("scan pages %s of process %d: %w", r, s.pid, err)
		}
		for _, p := range regions {
			run := PageRun{page.Range{Start: page.Addr(p.start), End: page.Addr(p.end)}, Categories(p.categories)}
			if err := m.add(run); err != nil {
				return err
			}
		}
		if next <= uint64(r.Start) {
			return fmt.Errorf("scan pages %s of process %d: the kernel made no progress", r, s.pid)
		}
		r.Start = page.Addr(next)
	}
	return nil
}

// scanRead reads the entries of /proc/PID/pagemap.
func (s *PageScanner) scanRead(r page.Range, m *merger) error {
	if s.entries == nil {
		s.entries = make([]byte, scanEntries)
	}
	for !r.Empty() {
		want := min(uint64(len(s.entries)), r.Pages()*8)
		n, err := unix.Pread(s.fd, s.entries[:want], int64(r.Start>>page.Shift)*8)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n < 8 {
			err = ErrNoProcess // its memory is gone
		}
		if err != nil {
			return fmt.Errorf("read pagemap %s of process %d: %w", r, s.pid, err)
		}
		for i := 0; i+8 <= n; i += 8 {
			c := pagemapCategories(binary.LittleEndian.Uint64(s.entries[i:]))
			one := page.RangeOf(r.Start, page.Size)
			r.Start = one.End
			if c&pageInteresting == 0 {
				continue
			}
			if err := m.add(PageRun{one, c}); err != nil {
				return err
			}
		}
	}
	return nil
}

// pagemapCategories says in our words what an entry of pagemap means.
func pagemapCategories(e uint64) Categories {
	var c Categories
	for _, b := range [...]struct {
		bit int
		c   Categories
	}{{63, PagePresent}, {62, PageSwapped}, {61, PageFile}, {58, PageGuard}, {55, PageSoftDirty}} {
		if e&(1<<b.bit) != 0 {
			c |= b.c
		}
	}
	if e&(1<<57) == 0 && c&pageInteresting != 0 { // not write-protected by a userfaultfd
		c |= PageWritten
	}
	return c
}
