// Package storetest is the conformance suite that every image.Source passes,
// and the suite for sources that can do more (Immediate, Filer).
package storetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
)

// Objects is what a source under test holds: content by name.
type Objects map[string][]byte

// Make is a source that holds objects. It is closed by the suite.
type Make func(t *testing.T, objects Objects) image.Source

// Run runs the suite, each part on a source of its own.
func Run(t *testing.T, mk Make) {
	parts := []struct {
		name string
		test func(*testing.T, image.Source, Objects)
	}{
		{"ReadRange", readRange},
		{"PastTheEnd", pastTheEnd},
		{"Missing", missing},
		{"Size", size},
		{"BadNames", badNames},
		{"Cancelled", cancelled},
		{"Concurrent", concurrent},
		{"Immediate", immediate},
		{"Prompt", prompt},
		{"Filer", filer},
	}
	for _, p := range parts {
		t.Run(p.name, func(t *testing.T) {
			objects := someObjects()
			src := mk(t, objects)
			p.test(t, src, objects)
			if err := src.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
	}
}

func someObjects() Objects {
	big := make([]byte, 3<<20+17)
	r := rand.NewChaCha8([32]byte{7})
	_, _ = r.Read(big)
	return Objects{"manifest.json": []byte("{}\n"), "pages.lz4": big, "empty.bin": {}}
}

// ranges is some places in an object of n bytes, at its borders and within.
func ranges(n int) [][2]int {
	rs := [][2]int{{0, n}, {0, 0}, {n, 0}, {0, min(n, 1)}, {max(n-1, 0), min(n, 1)}}
	r := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		off := r.IntN(n + 1)
		rs = append(rs, [2]int{off, r.IntN(min(n-off, 70_000) + 1)})
	}
	return rs
}

func readRange(t *testing.T, src image.Source, objects Objects) {
	for name, want := range objects {
		for i, r := range ranges(len(want)) {
			p := make([]byte, r[1])
			lane := image.Lane(i % 2)
			if err := src.ReadRange(t.Context(), name, p, int64(r[0]), lane); err != nil {
				t.Fatalf("read %d bytes of %s at %d (%v): %v", r[1], name, r[0], lane, err)
			}
			if !bytes.Equal(p, want[r[0]:r[0]+r[1]]) {
				t.Fatalf("%d bytes of %s at %d differ", r[1], name, r[0])
			}
		}
	}
}

func pastTheEnd(t *testing.T, src image.Source, objects Objects) {
	for name, b := range objects {
		n := int64(len(b))
		for _, tt := range []struct {
			off  int64
			size int
		}{{n, 1}, {max(n-1, 0), 2}, {n + 1, 1}, {n + 1<<40, 100}, {0, len(b) + 1}} {
			if err := src.ReadRange(t.Context(), name, make([]byte, tt.size), tt.off, image.Demand); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("read %d bytes of %s at %d of %d: %v, want %v", tt.size, name, tt.off, n, err, io.ErrUnexpectedEOF)
			}
		}
		for _, off := range []int64{-1, math.MinInt64, math.MaxInt64} {
			if err := src.ReadRange(t.Context(), name, make([]byte, 1), off, image.Demand); err == nil {
				t.Errorf("read of %s at %d gives no error", name, off)
			}
		}
	}
}

func missing(t *testing.T, src image.Source, _ Objects) {
	if err := src.ReadRange(t.Context(), "no-such.bin", make([]byte, 1), 0, image.Demand); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("read of a missing object: %v, want %v", err, fs.ErrNotExist)
	}
	if _, err := src.Size(t.Context(), "no-such.bin"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("size of a missing object: %v, want %v", err, fs.ErrNotExist)
	}
}

func size(t *testing.T, src image.Source, objects Objects) {
	for name, want := range objects {
		if n, err := src.Size(t.Context(), name); err != nil || n != int64(len(want)) {
			t.Errorf("size of %s: %d, %v, want %d", name, n, err, len(want))
		}
	}
}

// badNames asks for what is not an object but could be taken for one.
func badNames(t *testing.T, src image.Source, _ Objects) {
	for _, name := range []string{"", ".", "..", "/", "../manifest.json", "/etc/passwd", "./manifest.json", "a/b", "manifest.json\x00", "manifest.json/"} {
		if err := src.ReadRange(t.Context(), name, make([]byte, 1), 0, image.Demand); err == nil {
			t.Errorf("read of %q gives no error", name)
		}
		if _, err := src.Size(t.Context(), name); err == nil {
			t.Errorf("size of %q gives no error", name)
		}
	}
}

func cancelled(t *testing.T, src image.Source, _ Objects) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := src.ReadRange(ctx, "pages.lz4", make([]byte, 1), 0, image.Background); !errors.Is(err, context.Canceled) {
		t.Errorf("read with a cancelled context: %v", err)
	}
	if _, err := src.Size(ctx, "pages.lz4"); !errors.Is(err, context.Canceled) {
		t.Errorf("size with a cancelled context: %v", err)
	}
	if err := src.ReadRange(t.Context(), "pages.lz4", make([]byte, 1), 0, image.Background); err != nil {
		t.Errorf("read after a cancelled one: %v", err)
	}
}

func concurrent(t *testing.T, src image.Source, objects Objects) {
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 3))
			for range 100 {
				for name, want := range objects {
					off := r.IntN(len(want) + 1)
					p := make([]byte, r.IntN(min(len(want)-off, 20_000)+1))
					if err := src.ReadRange(t.Context(), name, p, int64(off), image.Lane(g%2)); err != nil {
						t.Errorf("read of %s: %v", name, err)
						return
					}
					if !bytes.Equal(p, want[off:off+len(p)]) {
						t.Errorf("%d bytes of %s at %d differ", len(p), name, off)
						return
					}
				}
			}
		})
	}
	wg.Wait()
}

func immediate(t *testing.T, src image.Source, objects Objects) {
	now, ok := src.(image.Immediate)
	if !ok {
		return
	}
	for name, want := range objects {
		for _, r := range ranges(len(want)) {
			p := make([]byte, r[1])
			ok, err := now.ReadNow(name, p, int64(r[0]))
			if err != nil {
				t.Fatalf("read now %d bytes of %s at %d: %v", r[1], name, r[0], err)
			}
			if ok && !bytes.Equal(p, want[r[0]:r[0]+r[1]]) {
				t.Fatalf("%d bytes of %s at %d differ", r[1], name, r[0])
			}
		}
		if ok, err := now.ReadNow(name, make([]byte, 2), int64(len(want))-1); ok {
			t.Errorf("read now past the end of %s: %v, %v", name, ok, err)
		}
	}
	if ok, err := now.ReadNow("no-such.bin", make([]byte, 1), 0); ok || err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("read now of a missing object: %v, %v", ok, err)
	}
}

func prompt(t *testing.T, src image.Source, objects Objects) {
	soon, ok := src.(image.Prompt)
	if !ok {
		return
	}
	for name, want := range objects {
		for _, r := range ranges(len(want)) {
			p := make([]byte, r[1])
			ok, err := soon.ReadSoon(name, p, int64(r[0]))
			if err != nil {
				t.Fatalf("read soon %d bytes of %s at %d: %v", r[1], name, r[0], err)
			}
			if ok && !bytes.Equal(p, want[r[0]:r[0]+r[1]]) {
				t.Fatalf("read soon %d bytes of %s at %d: they differ", r[1], name, r[0])
			}
		}
		if ok, err := soon.ReadSoon(name, make([]byte, 2), int64(len(want))-1); ok {
			t.Errorf("read soon past the end of %s: %v, %v", name, ok, err)
		}
	}
	if ok, err := soon.ReadSoon("no-such.bin", make([]byte, 1), 0); ok || err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("read soon of a missing object: %v, %v", ok, err)
	}
}

func filer(t *testing.T, src image.Source, objects Objects) {
	files, ok := src.(image.Filer)
	if !ok {
		return
	}
	for name, want := range objects {
		f, err := files.File(name)
		if err != nil {
			t.Fatalf("file of %s: %v", name, err)
		}
		got := make([]byte, len(want))
		if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("file of %s: %v, or other content", name, err)
		}
		if _, err := f.Write([]byte{1}); err == nil {
			t.Errorf("file of %s can be written", name)
		}
		if err := f.Close(); err != nil {
			t.Errorf("close file of %s: %v", name, err)
		}
	}
	if _, err := files.File("no-such.bin"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("file of a missing object: %v", err)
	}
}
