package imgfile

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// A MemoryWriter writes the memory of a task or a shared memory object into an
// image set: its pagemap, and its pages file.
type MemoryWriter struct {
	pagemap, pages *os.File
	buffer         *bufio.Writer // in front of pagemap
	w              *PagemapWriter
	pending        Entry // not written yet: what follows may continue it
}

// CreateMemory makes the pagemap of id in the set, and its pages file with the
// number pagesID, which has to be one that no other memory of the set has.
// Files that are there are overwritten.
func (d *Dir) CreateMemory(id MemoryID, pagesID uint32) (*MemoryWriter, error) {
	const flags = os.O_RDWR | os.O_CREATE | os.O_TRUNC
	w := new(MemoryWriter)
	var err error
	if w.pagemap, err = os.OpenFile(d.File(id.File()), flags, 0o600); err != nil {
		return nil, err
	}
	if w.pages, err = os.OpenFile(d.File(PagesName(pagesID)), flags, 0o600); err == nil {
		w.buffer = bufio.NewWriterSize(w.pagemap, 32<<10)
		w.w, err = NewPagemapWriter(w.buffer, pagesID)
	}
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// Pages is the pages file. Whoever writes present pages to its end by other
// means than Write (splice(2), say) tells by Add.
func (w *MemoryWriter) Pages() *os.File { return w.pages }

// Add notes an entry. Entries ascend. For one with Present, its pages have been
// or will be written to the end of the pages file, in the order of the entries.
func (w *MemoryWriter) Add(e Entry) error {
	if e.Empty() || !e.Start.Aligned() || !e.End.Aligned() || e.End > maxAddr {
		return fmt.Errorf("add %v to a pagemap: no range of pages", e.Range)
	}
	if e.Start < w.pending.End {
		return fmt.Errorf("add %v to a pagemap: the entry before ends at %v", e.Range, w.pending.End)
	}
	if e.Start == w.pending.End && e.Flags == w.pending.Flags && !w.pending.Empty() {
		w.pending.End = e.End
		return nil
	}
	if err := w.flush(); err != nil {
		return err
	}
	w.pending = e
	return nil
}

// flush writes the pending entry.
func (w *MemoryWriter) flush() error {
	if w.pending.Empty() {
		return nil
	}
	return w.w.Write(w.pending)
}

// Write adds an entry with Present, and its pages, which are copied from r.
func (w *MemoryWriter) Write(e Entry, r io.Reader) error {
	if e.Flags&Present == 0 {
		return fmt.Errorf("write pages %v: their flags %#x say that they are not in the file", e.Range, uint32(e.Flags))
	}
	if err := w.Add(e); err != nil {
		return err
	}
	n, err := io.CopyN(w.pages, r, int64(e.Len()))
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("write pages %v after %d bytes: %w", e.Range, n, err)
	}
	return nil
}

// WriteBytes is Write for pages in memory.
func (w *MemoryWriter) WriteBytes(at page.Addr, flags Flags, p []byte) error {
	if err := w.Add(Entry{page.RangeOf(at, uint64(len(p))), flags | Present}); err != nil {
		return err
	}
	_, err := w.pages.Write(p)
	return err
}

// Sync writes everything to the disk.
func (w *MemoryWriter) Sync() error {
	if err := w.Flush(); err != nil {
		return err
	}
	return errors.Join(w.pagemap.Sync(), w.pages.Sync())
}

// Flush writes what is buffered to the files.
func (w *MemoryWriter) Flush() error {
	if err := w.flush(); err != nil {
		return err
	}
	// The entry is not continued any more, but its end still bounds the next.
	w.pending.Start = w.pending.End
	return w.buffer.Flush()
}

// Close flushes and closes the files. It may be called again.
func (w *MemoryWriter) Close() error {
	var errs []error
	if w.w != nil {
		errs = append(errs, w.Flush())
		w.w = nil
	}
	for _, f := range []**os.File{&w.pagemap, &w.pages} {
		if *f != nil {
			errs = append(errs, (*f).Close())
			*f = nil
		}
	}
	return errors.Join(errs...)
}
