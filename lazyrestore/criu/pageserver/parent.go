package pageserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pageset"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pagexfer"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// A parent is the set that a dump builds on. The zero value is none.
type parent struct {
	set   *pageset.Set
	pages *pageset.Reader
	m     *pageset.Memory // of the memory that was begun last; nil: it is new
}

func newParent(set *pageset.Set) parent {
	return parent{set: set, pages: set.NewReader()}
}

func (p *parent) has(ctx context.Context, id imgfile.MemoryID) (bool, error) {
	if p.set == nil {
		return false, nil
	}
	_, err := p.set.Memory(ctx, id)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (p *parent) begin(ctx context.Context, id imgfile.MemoryID) error {
	p.m = nil
	if p.set == nil {
		return nil
	}
	m, err := p.set.Memory(ctx, id)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	p.m = m
	return nil
}

// check refuses pages that the parent is said to have, and has not.
func (p *parent) check(r page.Range) error {
	if p.m == nil || p.m.Extent(r) != r {
		return fmt.Errorf("%w: pages %v are said to be in the set that this one builds on, and are not", pagexfer.ErrProtocol, r)
	}
	return nil
}

// read fills b with pages of the parent.
func (p *parent) read(ctx context.Context, at page.Addr, b []byte) error {
	return p.pages.Read(ctx, p.m, at, b, image.Background)
}

func (p *parent) close() {
	if p.set == nil {
		return
	}
	p.pages.Close()
	p.set.Close() // only read from
	p.set = nil
}
