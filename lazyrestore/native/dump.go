package native

import (
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"os"

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
	for range readBuffers {
		d.buffers <- make([]byte, readSize)
	}
	// Several small pieces are read into one buffer, whose last user gives it back.
	for i := range pieces {
		p := &pieces[i]
		for off := uint64(0); off < p.Len(); off += readSize {
			r := page.RangeOf(p.Start+page.Addr(off), min(readSize, p.Len()-off))
			if err := d.one(ctx, p, r, p.image+page.Addr(off)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *dumper) one(ctx context.Context, p *piece, r page.Range, at page.Addr) error {
	var whole []byte
	select {
	case whole = <-d.buffers:
	case <-ctx.Done():
		return ctx.Err()
	}
	buf := whole[:r.Len()]
	if err := d.read(ctx, p, r, buf); err != nil {
		return fmt.Errorf("read memory %v: %w", r, err)
	}
	if err := d.w.WriteRun(ctx, at, buf, func() { d.buffers <- whole }); err != nil {
		return err
	}
	d.done += r.Len()
	if d.progress != nil {
		d.progress(d.done)
	}
	return nil
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
