package imgfile

import (
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"google.golang.org/protobuf/proto"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// A Kind says whose memory a pagemap is about.
type Kind uint8

// The kinds, with the numbers that the page server's protocol has for them.
const (
	TaskMemory   Kind = 1 // of a task, by its pid
	SharedMemory Kind = 2 // a shared memory object, by its id; addresses are offsets in it
)

// A MemoryID names the memory of a task or a shared memory object.
type MemoryID struct {
	Kind Kind
	ID   uint64
}

// OfTask is the memory of the task with that pid.
func OfTask(pid int) MemoryID { return MemoryID{TaskMemory, uint64(pid)} }

// File is the name of the memory's pagemap.
func (id MemoryID) File() string {
	if id.Kind == SharedMemory {
		return fmt.Sprintf("pagemap-shmem-%d.img", id.ID)
	}
	return fmt.Sprintf("pagemap-%d.img", id.ID)
}

// PagesName is the name of the pages file with the number that a pagemap gives.
func PagesName(pagesID uint32) string { return fmt.Sprintf("pages-%d.img", pagesID) }

// Flags say where the pages of an entry are (CRIU's PE_ flags).
type Flags uint32

// The flags.
const (
	Parent  Flags = 1 << 0 // in the set that this one builds on
	Lazy    Flags = 1 << 1 // may come once the task runs
	Present Flags = 1 << 2 // in the pages file
)

// known are the flags whose meaning this package knows.
const known = Parent | Lazy | Present

// An Entry is adjacent pages with the same flags. Pages in no entry are zero.
type Entry struct {
	page.Range
	Flags Flags
}

// maxAddr bounds the addresses of entries: above all that a process can map.
const maxAddr = page.ImageShared

// A Pagemap lists the pages of one task or shared memory object in one set.
type Pagemap struct {
	PagesID uint32 // number of the pages file
	Entries []Entry

	file  string // that it was read from; "": none
	stamp Stamp  // of that, from before
}

// ReadPagemap reads a pagemap called name. The entries ascend and do not
// overlap; their flags are known, and exactly one of Present and Parent is
// set, or neither with Lazy.
func ReadPagemap(r io.Reader, name string) (*Pagemap, error) {
	rd, err := NewReader(r, name, MagicPagemap)
	if err != nil {
		return nil, err
	}
	var head pagemap.PagemapHead
	if err := rd.Decode(&head); errors.Is(err, io.EOF) {
		return nil, rd.damaged(io.ErrUnexpectedEOF)
	} else if err != nil {
		return nil, err
	}
	pm := &Pagemap{PagesID: head.GetPagesId()}
	var last page.Addr
	for m := new(pagemap.PagemapEntry); ; {
		at := rd.off
		if err := rd.Decode(m); errors.Is(err, io.EOF) {
			return pm, nil
		} else if err != nil {
			return nil, err
		}
		e, err := entryOf(m)
		if err == nil && e.Start < last {
			err = fmt.Errorf("pages %v lie below %v, where the entry before ends", e.Range, last)
		}
		if err != nil {
			return nil, &DamagedError{File: name, Offset: at, Err: err}
		}
		last = e.End
		pm.Entries = append(pm.Entries, e)
	}
}

// entryOf is the entry that m means.
func entryOf(m *pagemap.PagemapEntry) (Entry, error) {
	n := uint64(m.GetCompatNrPages())
	if m.NrPages != nil {
		n = m.GetNrPages()
	}
	start := page.Addr(m.GetVaddr())
	if n == 0 || !start.Aligned() || start >= maxAddr || n > uint64(maxAddr-start)>>page.Shift {
		return Entry{}, fmt.Errorf("%d pages at %v are no range of pages", n, start)
	}
	flags := Flags(m.GetFlags())
	switch {
	// Before there were flags, pages were in the parent or present.
	case m.GetInParent():
		flags |= Parent
	case m.Flags == nil:
		flags = Present
	}
	e := Entry{page.RangeOf(start, n<<page.Shift), flags}
	switch flags & known {
	case Present, Present | Lazy, Parent, Parent | Lazy, Lazy:
	default:
		return Entry{}, fmt.Errorf("flags %#x of pages %v do not say where they are", uint32(flags), e.Range)
	}
	if flags&^known != 0 {
		return Entry{}, fmt.Errorf("flags %#x of pages %v are not known", uint32(flags), e.Range)
	}
	return e, nil
}

// A PagemapWriter writes a pagemap.
type PagemapWriter struct {
	w     *Writer
	entry pagemap.PagemapEntry
}

// NewPagemapWriter writes the head of a pagemap whose pages file has the
// number pagesID.
func NewPagemapWriter(w io.Writer, pagesID uint32) (*PagemapWriter, error) {
	wr, err := NewWriter(w, MagicPagemap)
	if err == nil {
		err = wr.Encode(&pagemap.PagemapHead{PagesId: proto.Uint32(pagesID)})
	}
	if err != nil {
		return nil, err
	}
	return &PagemapWriter{w: wr}, nil
}

// Write adds an entry. What is too long for the 32 bits that older CRIUs have
// for a number of pages becomes several.
func (w *PagemapWriter) Write(e Entry) error {
	for r := e.Range; !r.Empty(); {
		n := min(r.Pages(), math.MaxUint32)
		w.entry.Vaddr = proto.Uint64(uint64(r.Start))
		w.entry.CompatNrPages = proto.Uint32(uint32(n))
		w.entry.Flags = proto.Uint32(uint32(e.Flags))
		if err := w.w.Encode(&w.entry); err != nil {
			return err
		}
		r.Start += page.Addr(n << page.Shift)
	}
	return nil
}
