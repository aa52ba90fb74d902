package native

import (
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"sync"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

const readSize = 1 << 20 // bytes of eager pages that are read at a time

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
	missing  []page.Mapping
	progress func(done uint64)
	done     uint64

	mu     sync.Mutex
	source PageReader // under mu
}

// pages has the writer read, compress and write all pieces, many at a time. It
// returns when all have been read.
func (d *dumper) pages(ctx context.Context, pieces []piece) error {
	g := group{d: d, window: uint64(d.w.ChunkSize()), limit: uint64(d.w.BatchSize())}
	for i := range pieces {
		p := &pieces[i]
		for off := uint64(0); off < p.Len(); {
			// What is in one chunk stays together.
			at := p.image + page.Addr(off)
			n := min(p.Len()-off, g.window-uint64(at)%g.window)
			if !g.takes(at) {
				if err := g.write(ctx); err != nil {
					return err
				}
			}
			g.add(p, page.RangeOf(p.Start+page.Addr(off), n), at)
			off += n
		}
	}
	if err := g.write(ctx); err != nil {
		return err
	}
	return d.w.Settle(ctx)
}

// A group is parts of pieces that are read, compressed and written together:
// whole chunks.
type group struct {
	d      *dumper
	window uint64 // bytes of image addresses that are one chunk
	limit  uint64 // bytes
	parts  []groupPart
	runs   []page.Range // of the image
	size   uint64
}

type groupPart struct {
	page.Range
	piece *piece
}

// takes reports whether there is room for a part at an image address, and for
// what may follow it in its chunk.
func (g *group) takes(at page.Addr) bool {
	if len(g.runs) == 0 {
		return true
	}
	last := g.runs[len(g.runs)-1].End - 1
	return uint64(at)/g.window == uint64(last)/g.window || g.size+g.window <= g.limit
}

func (g *group) add(p *piece, r page.Range, at page.Addr) {
	g.size += r.Len()
	if n := len(g.parts); n > 0 && g.parts[n-1].piece == p {
		g.parts[n-1].End, g.runs[n-1].End = r.End, at+page.Addr(r.Len())
		return
	}
	g.parts = append(g.parts, groupPart{r, p})
	g.runs = append(g.runs, page.RangeOf(at, r.Len()))
}

// write gives a group to the writer, and empties it.
func (g *group) write(ctx context.Context) error {
	if len(g.parts) == 0 {
		return nil
	}
	d, parts := g.d, g.parts
	err := d.w.WriteRuns(ctx, g.runs, func(p []byte) error { return d.readParts(ctx, parts, p) })
	if err != nil {
		return err
	}
	d.done += g.size
	if d.progress != nil {
		d.progress(d.done)
	}
	g.parts, g.runs, g.size = nil, g.runs[:0], 0
	return nil
}

// readParts reads one part after the other into buf, those of the process's
// memory with few system calls. Several may be read at once.
func (d *dumper) readParts(ctx context.Context, parts []groupPart, buf []byte) error {
	var transfers []proc.Transfer
	for i := range parts {
		p := &parts[i]
		to := buf[:p.Len()]
		buf = buf[p.Len():]
		if p.piece.from == fromMemory {
			transfers = append(transfers, proc.Transfer{Addr: uint64(p.Start), Data: to})
			continue
		}
		if err := d.read(ctx, p.piece, p.Range, to); err != nil {
			return fmt.Errorf("read memory %v: %w", p.Range, err)
		}
	}
	_, err := proc.ReadMemoryV(d.pid, transfers)
	return err
}

func (d *dumper) read(ctx context.Context, p *piece, r page.Range, buf []byte) error {
	switch p.from {
	case fromMemory:
		// readParts reads it.
	case fromForced:
		_, err := d.mem.ReadAt(buf, int64(r.Start))
		return err
	case fromObject:
		return p.object.read(r, buf)
	case fromImage:
		missing := d.missing
		if p.object != nil {
			missing = p.object.missing
		}
		return d.readMissing(ctx, missing, r, buf)
	}
	return fmt.Errorf("unknown source %d", p.from)
}

// readMissing reads pages that no pager has installed yet, as missing says.
func (d *dumper) readMissing(ctx context.Context, missing []page.Mapping, r page.Range, buf []byte) error {
	at := r.Start
	for i := range missing {
		m := &missing[i]
		part := m.Intersect(page.Range{Start: at, End: r.End})
		if part.Empty() || part.Start != at {
			continue
		}
		from := buf[at-r.Start:][:part.Len()]
		d.mu.Lock()
		err := d.source.ReadPages(ctx, m.ImageAddr(at), from)
		d.mu.Unlock()
		if err != nil {
			return err
		}
		at = part.End
	}
	if at != r.End {
		return fmt.Errorf("the pager does not say where %v comes from", page.Range{Start: at, End: r.End})
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
		return d.readShared(ctx, objects[e.Shared-1], r, p)
	}
	for i := range d.missing {
		if d.missing[i].Overlaps(r) {
			return d.mixed(ctx, r, p)
		}
	}
	_, err := d.mem.ReadAt(p, int64(r.Start))
	return err
}

// readShared reads pages of a shared object some of which a pager may not have installed yet.
func (d *dumper) readShared(ctx context.Context, o *object, r page.Range, p []byte) error {
	if err := o.read(r, p); err != nil {
		return err
	}
	for i := range o.missing {
		if in := o.missing[i].Intersect(r); !in.Empty() {
			if err := d.readMissing(ctx, o.missing[i:], in, p[in.Start-r.Start:][:in.Len()]); err != nil {
				return err
			}
		}
	}
	return nil
}

// mixed reads pages some of which a pager has not installed yet.
func (d *dumper) mixed(ctx context.Context, r page.Range, p []byte) error {
	for at := r.Start; at < r.End; at += page.Size {
		one := page.RangeOf(at, page.Size)
		b := p[at-r.Start:][:page.Size]
		err := d.readMissing(ctx, d.missing, one, b)
		if err != nil {
			_, err = d.mem.ReadAt(b, int64(at))
		}
		if err != nil {
			return err
		}
	}
	return nil
}
