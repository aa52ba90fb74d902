package image_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// golden is an object of a golden image.
func golden(f testing.TB, spec chunk.Spec, object string) []byte {
	f.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "v1", spec.String(), object))
	if err != nil {
		f.Fatal(err)
	}
	return b
}

// appendSum ends a manifest with the line of its checksum.
func appendSum(b []byte) []byte {
	return fmt.Appendf(b, "  \"crc32c\": \"%08x\"\n}\n", chunk.Checksum(b))
}

// sameQuickly looks whether a manifest that is read the quick way is what
// package json makes of it.
func sameQuickly(t *testing.T, b []byte) (quick bool) {
	t.Helper()
	m, quick := image.QuickManifest(b)
	if !quick {
		return false
	}
	slow := new(image.Manifest)
	if err := json.Unmarshal(b, slow); err != nil {
		t.Fatalf("read quickly, but %v:\n%s", err, b)
	}
	if diff := cmp.Diff(slow, m); diff != "" {
		t.Fatalf("%s\nin\n%s", diff, b)
	}
	return true
}

// All manifests that were ever written are read the quick way, and no other.
func TestQuickManifest(t *testing.T) {
	for _, spec := range allSpecs {
		if b := golden(t, spec, image.ManifestObject); !sameQuickly(t, b) {
			t.Errorf("%v: not read quickly:\n%s", spec, b)
		}
	}
	mem, _ := small(t, chunk.Spec{Codec: chunk.Zstd})
	b := mem.Get(image.ManifestObject)
	if !sameQuickly(t, b) {
		t.Errorf("not read quickly:\n%s", b)
	}
	refused := func(what string, b []byte) {
		if sameQuickly(t, b) {
			t.Errorf("%s: read quickly:\n%s", what, b)
		}
	}
	for i := range b {
		refused("cut off", b[:i])
		for _, c := range []byte("\"\\ 0-}x") {
			other := bytes.Clone(b)
			other[i] = c
			sameQuickly(t, other)
		}
	}
	refused("a byte behind the end", append(bytes.Clone(b), '\n'))
	for _, alter := range [][2]string{
		{`"version": `, `"version": 0`},
		{`"version": `, `"version": -`},
		{`"version": `, `"version":  `},
		{`"imagetest"`, `"imagetes\u0074"`},
		{`"arch"`, `"Arch"`},
		{`"threads"`, `"mappings"`},
		{"\"layers\": [],\n  \"objects\"", "\"objects\": [],\n  \"layers\""},
		{"  \"codec\"", "  \"more\": 1,\n  \"codec\""},
		{"\n", "\r\n"},
	} {
		other := bytes.Replace(b, []byte(alter[0]), []byte(alter[1]), 1)
		if bytes.Equal(other, b) {
			t.Errorf("%s is not there:\n%s", alter[0], b)
		}
		refused(alter[1], other)
	}
}

// What a manifest parses to is written and parses to the same again, and
// writing that is the identity.
func FuzzManifest(f *testing.F) {
	mem, _ := small(f, chunk.Spec{Codec: chunk.Zstd})
	f.Add(mem.Get(image.ManifestObject))
	for _, spec := range allSpecs {
		f.Add(golden(f, spec, image.ManifestObject))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		// The checksum would keep the fuzzer out: it is put right.
		if at := bytes.LastIndex(b, []byte(`  "crc32c": "`)); at >= 0 {
			b = appendSum(b[:at:at])
		}
		sameQuickly(t, b)
		m, err := image.ParseManifest(b)
		if err != nil {
			if !knownError(err) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		again, err := image.AppendManifest(nil, m)
		if err != nil {
			t.Fatal(err)
		}
		m2, err := image.ParseManifest(again)
		if err != nil {
			t.Fatalf("%v in what was written:\n%s", err, again)
		}
		if diff := cmp.Diff(m, m2); diff != "" {
			t.Fatal(diff)
		}
		if third, err := image.AppendManifest(nil, m2); err != nil || !bytes.Equal(third, again) {
			t.Fatalf("written twice, %v:\n%s\n%s", err, again, third)
		}
	})
}

// An index, whatever is in it, gives an error or runs that keep what Index
// promises; all within a few times the memory of the file.
func FuzzIndex(f *testing.F) {
	mem, _ := small(f, chunk.Spec{Codec: chunk.LZ4})
	f.Add(mem.Get(image.IndexObject))
	f.Add(golden(f, chunk.Spec{Codec: chunk.LZ4}, image.IndexObject))
	f.Add(image.SealIndex(bytes.Clone(mem.Get(image.IndexObject))))
	pages := int64(len(mem.Get("pages.lz4")))
	f.Fuzz(func(t *testing.T, b []byte) {
		b = image.SealIndex(bytes.Clone(b))
		m := new(imagetest.Mem)
		m.Set(image.IndexObject, b)
		m.Set("pages.lz4", make([]byte, pages))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		ix, err := image.LoadIndexOf(m, b, pages)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20+4*uint64(len(b)) {
			t.Fatalf("%d bytes allocated for an index of %d", n, len(b))
		}
		if err != nil {
			if !knownError(err) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		checkIndex(t, ix, pages)
	})
}

// checkIndex holds an index against what its type promises.
func checkIndex(t *testing.T, ix *image.Index, size int64) {
	t.Helper()
	next := page.Addr(0)
	for i, r := range ix.Runs() {
		if r.Range().Empty() || r.Page < next {
			t.Fatalf("run %d: %+v after %v", i, r, next)
		}
		next = r.Range().End
		if got, ok := ix.Lookup(r.Page); !ok || got != r {
			t.Fatalf("Lookup(%v) = %+v, %v, want %+v", r.Page, got, ok, r)
		}
	}
	for i := range ix.Frames() {
		fr := ix.Frame(i)
		if fr.Plain <= 0 || fr.Plain > ix.ChunkSize() || fr.Stored <= 0 || fr.Offset < 0 || fr.Offset+int64(fr.Stored) > size {
			t.Fatalf("frame %d: %+v", i, fr)
		}
		pages := 0
		for _, r := range ix.FrameRuns(i) {
			if int(r.Offset) != pages || int(r.Frame) != i {
				t.Fatalf("frame %d: %+v", i, r)
			}
			pages += int(r.Pages)
		}
		if pages<<page.Shift != fr.Plain {
			t.Fatalf("frame %d: %d pages, %d bytes", i, pages, fr.Plain)
		}
	}
}

// What an index parses to is written again as it was.
func TestIndexIdentity(t *testing.T) {
	mem, _ := small(t, chunk.Spec{Codec: chunk.LZ4})
	b := mem.Get(image.IndexObject)
	again, err := image.RewriteIndex(b)
	if err != nil || !bytes.Equal(b, again) {
		t.Errorf("%v, %d bytes became %d", err, len(b), len(again))
	}
	if _, err := image.RewriteIndex(b[:len(b)-1]); !errors.Is(err, image.ErrDamaged) {
		t.Errorf("truncated: %v", err)
	}
}

// An index whose checksums agree can still be one that no writer makes. Each
// of these would otherwise reach the pager.
func TestBadIndex(t *testing.T) {
	mem, _ := small(t, chunk.Spec{Codec: chunk.LZ4})
	good := mem.Get(image.IndexObject)
	pages := int64(len(mem.Get("pages.lz4")))
	const (
		frame0, frame1 = 16, 16 + 24
		nFrames        = 5
		run0           = 16 + nFrames*24
		run1, run2     = run0 + 16, run0 + 32
	)
	dir, foot := len(good)-128, len(good)-64
	for _, tt := range []struct {
		name string
		at   int
		to   []byte
	}{
		{"as it is", 0, nil},
		{"frame elsewhere", frame0, []byte{1}},
		{"frame overlaps the one before", frame1, []byte{0, 0}},
		{"frame past the end", frame1, []byte{0, 0, 0, 0, 0, 1}},
		{"unknown flag", frame0 + 7, []byte{2}},
		{"empty frame", frame0 + 8, []byte{0, 0, 0, 0}},
		{"stored larger than plain", frame0 + 8, []byte{0, 0, 9}},
		{"stored of 4 GiB", frame0 + 8, []byte{0xff, 0xff, 0xff, 0xff}},
		{"first run of another", frame1 + 16, []byte{0}},
		{"first run past the end", frame1 + 16, []byte{0xff, 0xff, 0xff, 0xff}},
		{"no runs", frame0 + 20, []byte{0}},
		{"too many runs", frame0 + 20, []byte{0xff, 0xff}},
		{"plain larger than a chunk", frame0 + 22, []byte{0xff}},
		{"plain is not its runs", frame0 + 22, []byte{1}},
		{"no plain", frame0 + 22, []byte{0}},
		{"run of another frame", run0 + 8, []byte{1}},
		{"run without pages", run0 + 12, []byte{0}},
		{"run too long", run0 + 12, []byte{0xff, 0xff}},
		{"run at another place", run0 + 14, []byte{1}},
		{"zero run in a frame", run0 + 6, []byte{0x10}},
		{"layer in version 1", run0 + 6, []byte{0x20}},
		{"run before the last one", run1, []byte{0, 0, 0, 0, 0, 0}},
		{"runs overlap", run2, good[run1 : run1+8]},
		{"run at the end of addresses", run2, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f}},
		{"segment elsewhere", dir, []byte{17}},
		{"segment before the file", dir + 7, []byte{0x80}},
		{"segment starts with another page", dir + 8, []byte{1, 1, 1}},
		{"segment of more frames", dir + 16, []byte{nFrames + 1}},
		{"segment of 2^32 frames", dir + 16, []byte{0xff, 0xff, 0xff, 0xff}},
		{"segment of fewer runs", dir + 20, []byte{1}},
		{"segment of no runs", dir + 20, []byte{0}},
		{"segment beyond all addresses", dir + 14, []byte{0xff}},
		{"footer of no segments", foot + 20, []byte{0}},
		{"footer of many segments", foot + 20, []byte{0xff, 0xff, 0xff, 0xff}},
		{"footer with flags", foot + 24, []byte{1}},
		{"footer of more frames", foot + 28, []byte{0xff, 0xff, 0xff, 0xff, 0xff}},
		{"footer of more runs", foot + 36, []byte{0xff}},
		{"directory elsewhere", foot + 44, []byte{0, 0}},
		{"frames end elsewhere", foot + 52, []byte{1, 1}},
		{"frames end past the pages", foot + 52, []byte{0xff, 0xff, 0xff, 0xff}},
		{"other page size", foot + 12, []byte{0, 0, 1}},
		{"other chunk size", foot + 16, []byte{0, 0, 1}},
		{"old version", foot + 8, []byte{0}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := bytes.Clone(good)
			copy(b[tt.at:], tt.to)
			b = image.SealIndex(b)
			m := mem.Clone()
			m.Set(image.IndexObject, b)
			_, err := image.LoadIndexOf(m, b, pages)
			if tt.to == nil {
				if err != nil {
					t.Error(err)
				}
			} else if !errors.Is(err, image.ErrDamaged) {
				t.Errorf("error %v", err)
			}
		})
	}
	b := bytes.Clone(good)
	b[foot+8] = 9
	b = image.SealIndex(b)
	m := mem.Clone()
	m.Set(image.IndexObject, b)
	if _, err := image.LoadIndexOf(m, b, pages); !errors.Is(err, image.ErrVersion) {
		t.Errorf("newer index: %v", err)
	}
}
