package native

import (
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

const (
	readSize    = 1 << 20 // bytes read from a process at a time
	readBuffers = 8       // of readSize; with the writer's own, all that a dump holds
)

// PageReader reads pages of the image that a process is still being restored
// from, by their image address.
type PageReader interface {
	ReadPages(ctx context.Context, at page.Addr, p []byte) error
}

// dumper writes the content of a frozen process into an image.
type dumper struct {
	pid      int
	mem      *os.File // /proc/PID/mem
	w        *image.Writer
	source   PageReader
	missing  []page.Mapping
	buffers  chan []byte
	progress func(done uint64)
	done     uint64
}

// pages streams all pieces to the writer, which compresses and writes them
// while the next are read.
func (d *dumper) pages(ctx context.Context, pieces []piece) error {
	d.buffers = make(chan []byte, readBuffers)
	all := make([]byte, readBuffers*readSize)
	_ = unix.Madvise(all, unix.MADV_HUGEPAGE) // else each of its 2,000 pages raises an exception, while the process waits
	for b := range slices.Chunk(all, readSize) {
		d.buffers <- b
	}
	var g group
	for i := range pieces {
		p := &pieces[i]
		for off := uint64(0); off < p.Len(); off += readSize {
			r := page.RangeOf(p.Start+page.Addr(off), min(readSize, p.Len()-off))
			if !g.takes(p, r) {
				if err := d.write(ctx, &g); err != nil {
					return err
				}
			}
			g.add(p, r, p.image+page.Addr(off))
		}
	}
	return d.write(ctx, &g)
}

// A group is parts of pieces that are read into one buffer: many small ones of
// the process's memory, with one system call, or one of any other kind.
type group struct {
	parts []groupPart
	size  uint64
}

type groupPart struct {
	page.Range
	piece *piece
	at    page.Addr // in the image
}

const groupParts = 1024 // that one system call reads

func (g *group) takes(p *piece, r page.Range) bool {
	if len(g.parts) == 0 {
		return true
	}
	return len(g.parts) < groupParts && g.size+r.Len() <= readSize &&
		p.from == fromMemory && g.parts[0].piece.from == fromMemory
}

func (g *group) add(p *piece, r page.Range, at page.Addr) {
	g.parts = append(g.parts, groupPart{r, p, at})
	g.size += r.Len()
}

// write reads a group, gives it to the writer, and empties it. The last part
// that the writer is done with gives the buffer back.
func (d *dumper) write(ctx context.Context, g *group) error {
	if len(g.parts) == 0 {
		return nil
	}
	var whole []byte
	select {
	case whole = <-d.buffers:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := d.readGroup(ctx, g, whole); err != nil {
		return err
	}
	users := new(atomic.Int32)
	users.Store(int32(len(g.parts)))
	release := func() {
		if users.Add(-1) == 0 {
			d.buffers <- whole
		}
	}
	off := uint64(0)
	for i := range g.parts {
		p := &g.parts[i]
		if err := d.w.WriteRun(ctx, p.at, whole[off:off+p.Len():off+p.Len()], release); err != nil {
			return err
		}
		off += p.Len()
	}
	d.done += g.size
	if d.progress != nil {
		d.progress(d.done)
	}
	g.parts, g.size = g.parts[:0], 0
	return nil
}

func (d *dumper) readGroup(ctx context.Context, g *group, buf []byte) error {
	if len(g.parts) == 1 {
		p := &g.parts[0]
		if err := d.read(ctx, p.piece, p.Range, buf[:p.Len()]); err != nil {
			return fmt.Errorf("read memory %v: %w", p.Range, err)
		}
		return nil
	}
	transfers := make([]proc.Transfer, len(g.parts))
	for i := range g.parts {
		n := g.parts[i].Len()
		transfers[i] = proc.Transfer{Addr: uint64(g.parts[i].Start), Data: buf[:n]}
		buf = buf[n:]
	}
	_, err := proc.ReadMemoryV(d.pid, transfers)
	return err
}

func (d *dumper) read(ctx context.Context, p *piece, r page.Range, buf []byte) error {
	switch p.from {
	case fromMemory:
		_, err := proc.ReadMemory(d.pid, uint64(r.Start), buf)
		return err
	case fromForced:
		_, err := d.mem.ReadAt(buf, int64(r.Start))
		return err
	case fromObject:
		return readObject(p.object.path, r, buf)
	case fromImage:
		return d.readMissing(ctx, r, buf)
	}
	return fmt.Errorf("unknown source %d", p.from)
}

// readMissing reads pages that no pager has installed yet.
func (d *dumper) readMissing(ctx context.Context, r page.Range, buf []byte) error {
	at := r.Start
	for i := range d.missing {
		m := &d.missing[i]
		part := m.Intersect(page.Range{Start: at, End: r.End})
		if part.Empty() || part.Start != at {
			continue
		}
		from := buf[at-r.Start:][:part.Len()]
		if err := d.source.ReadPages(ctx, m.ImageAddr(at), from); err != nil {
			return err
		}
		at = part.End
	}
	if at != r.End {
		return fmt.Errorf("the pager does not say where %v comes from", page.Range{Start: at, End: r.End})
	}
	return nil
}

// readObject reads a shared object's pages; the last may be cut off by the
// object's end.
func readObject(path string, r page.Range, buf []byte) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for off := 0; off < len(buf); {
		n, err := unix.Pread(fd, buf[off:], int64(r.Start)+int64(off))
		if err != nil {
			return err
		}
		if n == 0 {
			clear(buf[off:])
			break
		}
		off += n
	}
	return nil
}

// eager writes eager.raw.
func (d *dumper) eager(ctx context.Context, st *State, objects []*object) error {
	out, err := d.w.Object(image.EagerObject)
	if err != nil {
		return err
	}
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	to := io.MultiWriter(out, sum)
	buf := make([]byte, readSize)
	for i := range st.Eager {
		if err := d.eagerRun(ctx, &st.Eager[i], objects, buf, to); err != nil {
			out.Close()
			return err
		}
	}
	st.EagerSum = sum.Sum32()
	return out.Close()
}

func (d *dumper) eagerRun(ctx context.Context, e *Eager, objects []*object, buf []byte, to io.Writer) error {
	for at := e.Start; at < e.End; {
		r := page.Range{Start: at, End: min(e.End, at+readSize)}
		p := buf[:r.Len()]
		if err := d.readEager(ctx, e, r, objects, p); err != nil {
			return fmt.Errorf("read memory %v: %w", r, err)
		}
		if _, err := to.Write(p); err != nil {
			return err
		}
		at = r.End
	}
	return nil
}

func (d *dumper) readEager(ctx context.Context, e *Eager, r page.Range, objects []*object, p []byte) error {
	if e.Shared != 0 {
		return readObject(objects[e.Shared-1].path, r, p)
	}
	for i := range d.missing {
		if d.missing[i].Overlaps(r) {
			return d.mixed(ctx, r, p)
		}
	}
	_, err := d.mem.ReadAt(p, int64(r.Start))
	return err
}

// mixed reads pages some of which a pager has not installed yet.
func (d *dumper) mixed(ctx context.Context, r page.Range, p []byte) error {
	for at := r.Start; at < r.End; at += page.Size {
		one := page.RangeOf(at, page.Size)
		b := p[at-r.Start:][:page.Size]
		err := d.readMissing(ctx, one, b)
		if err != nil {
			_, err = d.mem.ReadAt(b, int64(at))
		}
		if err != nil {
			return err
		}
	}
	return nil
}
