package image_test

import (
	"bytes"
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
func golden(f *testing.F, spec chunk.Spec, object string) []byte {
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
