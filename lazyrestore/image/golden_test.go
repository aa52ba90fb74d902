package image_test

import (
	"bytes"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// newGolden makes golden images that are not there yet. Those that are there
// are frozen: every later version of this package has to read them.
var newGolden = flag.Bool("new-golden", false, "write golden images where there are none")

// goldenRuns is the memory of the golden images.
func goldenRuns() []imagetest.Run {
	return []imagetest.Run{
		{At: 0x400000, P: fill(1, []byte{1, 1, 0, 1, 2, 0, 0, 2, 1})},
		{At: 0x500000, P: fill(2, []byte{0, 0, 0})},
		{At: 0x7f1234567000, P: fill(3, []byte{1})},
		{At: page.ImageShared, P: fill(4, []byte{0, 1, 2})},
	}
}

const goldenProcess = "what an engine needs"

func writeGolden(t *testing.T, dir string, opts image.WriterOptions) {
	t.Helper()
	m := new(imagetest.Mem)
	w, err := image.NewWriter(m, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for _, r := range goldenRuns() {
		if err := w.WriteRun(t.Context(), r.At, r.P, nil); err != nil {
			t.Fatal(err)
		}
	}
	o, err := w.Object(image.ProcessObject)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.Write([]byte(goldenProcess)); err != nil {
		t.Fatal(err)
	}
	_, err = w.Finish(t.Context(), image.Manifest{
		Writer: "lazyrestore test", Created: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC),
		Machine: image.Machine{Arch: "amd64", XFeatures: 7},
		Process: image.Process{PID: 4711, Comm: "golden", Threads: 2, Mappings: 4},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range m.Names() {
		if err := os.WriteFile(filepath.Join(dir, name), m.Get(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// load is an image from disk in memory.
func load(t *testing.T, dir string) *imagetest.Mem {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	m := new(imagetest.Mem)
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		m.Set(e.Name(), b)
	}
	return m
}

// Images of version 1 are read for ever.
func TestGolden(t *testing.T) {
	digests := map[string]string{
		"none": "sha256:c85718ed92a7a849d28af825ea3c5a04b25d2d9d20a41b0851c06da242f465f2",
		"zstd": "sha256:8d4bf44a399d196e347fb931d52478721bbaa5eba9b70ef5b196fc775d647bbb",
		"s2":   "sha256:13ed2899296f3c1457229310ff1f85131c28f4ff898131e39e7b581c91b9fd4d",
		"lz4":  "sha256:bafccd3fa5970f240dca5b921954b5230d34ecf3386c7cf72868b9a0ed77db24",
	}
	want := make(map[page.Addr][]byte)
	for _, r := range goldenRuns() {
		for i := 0; i < len(r.P); i += page.Size {
			if p := r.P[i : i+page.Size]; !bytes.Equal(p, make([]byte, page.Size)) {
				want[r.At+page.Addr(i)] = p
			}
		}
	}
	for _, spec := range allSpecs {
		t.Run(spec.String(), func(t *testing.T) {
			dir := filepath.Join("testdata", "v1", spec.String())
			if _, err := os.Stat(dir); *newGolden && os.IsNotExist(err) {
				writeGolden(t, dir, image.WriterOptions{Spec: spec, ChunkSize: 4 * page.Size})
			}
			mem := load(t, dir)
			pages, process, err := contents(t, mem, digests[spec.String()])
			if err != nil {
				im, err2 := image.Open(t.Context(), mem, image.OpenOptions{})
				if err2 == nil {
					t.Logf("digest is %s", im.Digest())
				}
				t.Fatal(err)
			}
			if string(process) != goldenProcess {
				t.Errorf("process.bin is %q", process)
			}
			if !same(pages, want) {
				t.Errorf("pages at %v, want %v, or other content", slices.Sorted(maps.Keys(pages)), slices.Sorted(maps.Keys(want)))
			}
			if rep, err := image.Verify(t.Context(), mem, image.VerifyOptions{}); err != nil || !rep.OK() {
				t.Errorf("verify: %v, %v", rep.Problems, err)
			}
		})
	}
}
