package pager

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// A reference is a layout as a map from page to image page would have it.
type reference map[page.Addr]page.Addr

func (ref reference) check(t *rapid.T, l *layout) {
	t.Helper()
	got := reference{}
	last := page.Addr(0)
	for _, m := range l.byProc {
		if m.Start < last || m.Empty() {
			t.Fatalf("mapping %v after %v", m.Range, last)
		}
		last = m.End
		for a := m.Start; a < m.End; a += page.Size {
			got[a] = m.ImageAddr(a)
		}
	}
	if diff := cmp.Diff(ref, got); diff != "" {
		t.Fatalf("layout (-want +got):\n%s", diff)
	}
	byImage := slices.Clone(l.byProc)
	slices.SortFunc(byImage, compareImage)
	if !slices.Equal(byImage, l.byImage) {
		t.Fatalf("by image: %v, want %v", l.byImage, byImage)
	}
}

// pages draws a range of pages in a small address space above base.
func pages(t *rapid.T, base page.Addr) page.Range {
	start := rapid.IntRange(0, 30).Draw(t, "start")
	n := rapid.IntRange(1, 12).Draw(t, "pages")
	return page.RangeOf(base+page.Addr(start)*page.Size, uint64(n)*page.Size)
}

const testBase page.Addr = 0x10000

// drawLayout is a layout of private memory, and of shared memory that may be
// mapped more than once.
func drawLayout(t *rapid.T) layout {
	var maps []page.Mapping
	at := testBase
	for range rapid.IntRange(0, 5).Draw(t, "mappings") {
		at += page.Addr(rapid.IntRange(0, 3).Draw(t, "gap")) * page.Size
		m := page.Mapping{Range: page.RangeOf(at, uint64(rapid.IntRange(1, 8).Draw(t, "length"))*page.Size), Image: at, PageSize: page.Size}
		if m.Shared = rapid.Bool().Draw(t, "shared"); m.Shared {
			m.Image = page.ImageShared + page.Addr(rapid.IntRange(0, 6).Draw(t, "image"))*page.Size
			m.Object = page.Object{Range: page.RangeOf(page.ImageShared, 16*page.Size), Dev: 1, Inode: 2}
		}
		maps = append(maps, m)
		at = m.End
	}
	l, err := newLayout(maps)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// drawEvent is some event; a remap's parts do not overlap. One that is kept leaves its place
// mapped (MREMAP_DONTUNMAP).
func drawEvent(t *rapid.T) event {
	e := event{kind: rapid.SampledFrom([]eventKind{eventFork, eventRemap, eventRemove, eventUnmap}).Draw(t, "event")}
	if e.kind == eventFork {
		e.fd = rapid.IntRange(3, 99).Draw(t, "fd")
		return e
	}
	e.from = pages(t, testBase)
	e.kept = rapid.Bool().Draw(t, "kept")
	if e.kind == eventRemap {
		e.to = testBase + 64*page.Size + page.Addr(rapid.IntRange(0, 30).Draw(t, "to"))*page.Size
		if rapid.Bool().Draw(t, "back") {
			e.from, e.to = page.RangeOf(e.to, e.from.Len()), e.from.Start
		}
	}
	return e
}

// Events do to a layout what they would do to a map of pages, and places
// finds every page that is left.
func TestLayoutFollowsEvents(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{}
		m := w.add(3, 1, drawLayout(t))
		ref := reference{}
		for _, p := range m.byProc {
			for a := p.Start; a < p.End; a += page.Size {
				ref[a] = p.ImageAddr(a)
			}
		}
		for range rapid.IntRange(0, 12).Draw(t, "events") {
			e := drawEvent(t)
			if e.kind == eventFork {
				continue
			}
			for _, e := range told(e) {
				if _, err := w.apply(0, e); err != nil {
					t.Fatal(err)
				}
			}
			ref.apply(e)
			ref.check(t, &m.layout)
		}
		r := pages(t, rapid.SampledFrom([]page.Addr{testBase, page.ImageShared}).Draw(t, "where"))
		want, got := reference{}, reference{}
		for a, image := range ref {
			if r.Contains(image) {
				want[a] = image
			}
		}
		m.places(r, func(p page.Mapping) {
			for a := p.Start; a < p.End; a += page.Size {
				got[a] = p.ImageAddr(a)
			}
		})
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("places of %v (-want +got):\n%s", r, diff)
		}
	})
}

// told is what the kernel tells of one call: of a move also that its place was
// made free, and what it has left. In between it is looked what calls are under way.
func told(e event) []event {
	looked := event{kind: eventLooked}
	if e.kind != eventRemap {
		return []event{e, looked}
	}
	list := []event{{kind: eventUnmap, from: e.into()}, looked, e}
	if e.kept {
		looked.sure = true
		return append(list, looked)
	}
	return append(list, looked, event{kind: eventUnmap, from: e.from}, looked)
}

func (ref reference) apply(e event) {
	if e.kind == eventRemove && e.kept {
		for a := e.from.Start; a < e.from.End; a += page.Size {
			if ref[a] >= page.ImageShared {
				return // events do not span mappings
			}
		}
	}
	moved := reference{}
	lost := map[page.Addr]bool{}
	for a := e.from.Start; a < e.from.End; a += page.Size {
		image, ok := ref[a]
		if !ok {
			continue
		}
		if e.kind != eventRemap || !e.kept || image < page.ImageShared {
			delete(ref, a)
		}
		switch {
		case e.kind == eventRemap:
			moved[a-e.from.Start+e.to] = image
		case e.kind == eventRemove && image >= page.ImageShared:
			lost[image] = true
		}
	}
	if e.kind == eventRemap {
		for a := e.to; a < e.to+page.Addr(e.from.Len()); a += page.Size {
			delete(ref, a)
		}
	}
	for a, image := range moved {
		ref[a] = image
	}
	for a, image := range ref {
		if lost[image] {
			delete(ref, a)
		}
	}
}

// What a forked child's events do leaves its parent alone, but for shared
// memory.
func TestForkIsACopy(t *testing.T) {
	w := &world{}
	l, err := newLayout([]page.Mapping{
		{Range: page.RangeOf(testBase, 4*page.Size), Image: testBase, PageSize: page.Size},
		{Range: page.RangeOf(testBase+8*page.Size, 4*page.Size), Image: page.ImageShared, PageSize: page.Size, Shared: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	parent := w.add(3, 1, l)
	child, err := w.apply(parent.id, event{kind: eventFork, fd: 9})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []page.Range{page.RangeOf(testBase, page.Size), page.RangeOf(testBase+8*page.Size, page.Size)} {
		if _, err := w.apply(child.id, event{kind: eventRemove, from: r}); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := parent.find(testBase); !ok {
		t.Error("the parent's private page went with its child's")
	}
	if _, ok := parent.find(testBase + 8*page.Size); ok {
		t.Error("shared memory that the child removed is still there in the parent")
	}
	if child.fd != 9 || child.id != 1 {
		t.Errorf("child = space %d, fd %d", child.id, child.fd)
	}
}

func TestBadMappings(t *testing.T) {
	r := page.RangeOf(testBase, 4*page.Size)
	ok := page.Mapping{Range: r, Image: testBase, PageSize: page.Size}
	change := func(f func(m *page.Mapping)) page.Mapping {
		m := ok
		f(&m)
		return m
	}
	tests := []struct {
		name string
		maps []page.Mapping
	}{
		{"empty", []page.Mapping{change(func(m *page.Mapping) { m.End = m.Start })}},
		{"page size", []page.Mapping{change(func(m *page.Mapping) { m.PageSize = 3 * page.Size })}},
		{"unaligned", []page.Mapping{change(func(m *page.Mapping) { m.Start++ })}},
		{"image unaligned", []page.Mapping{change(func(m *page.Mapping) { m.Image++ })}},
		{"not whole huge pages", []page.Mapping{change(func(m *page.Mapping) { m.PageSize = 2 << 20 })}},
		{"image wraps", []page.Mapping{change(func(m *page.Mapping) { m.Image, m.Shared = ^page.Addr(2*page.Size-1), true })}},
		{"shared below", []page.Mapping{change(func(m *page.Mapping) { m.Shared = true })}},
		{"overlap", []page.Mapping{ok, change(func(m *page.Mapping) { m.Range, m.Image = m.Shift(page.Size), 1<<30 })}},
		{"private twice", []page.Mapping{ok, change(func(m *page.Mapping) { m.Range = m.Shift(1 << 30) })}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := newLayout(tt.maps); err == nil {
				t.Error("newLayout accepts it")
			}
		})
	}
	if _, err := newLayout([]page.Mapping{ok}); err != nil {
		t.Error(err)
	}
}
