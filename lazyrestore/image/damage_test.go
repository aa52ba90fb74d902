package image_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

const base page.Addr = 0x7f0000000000

// small is an image of a few frames: compressed, raw, with a hole, short.
func small(t testing.TB, spec chunk.Spec) (*imagetest.Mem, image.Result) {
	opts := image.WriterOptions{Spec: spec, ChunkSize: 2 * page.Size, Workers: 2}
	return imagetest.Write(t, opts,
		imagetest.Run{At: base, P: fill(1, []byte{1, 1, 1, 0, 2, 2, 1})},
		imagetest.Run{At: base + 1<<20, P: fill(2, []byte{0, 1})},
	)
}

// contents is all that an image gives: pages and objects.
func contents(t testing.TB, src image.Source, digest string) (pages map[page.Addr][]byte, process []byte, err error) {
	im, err := image.Open(t.Context(), src, image.OpenOptions{Digest: digest})
	if err != nil {
		return nil, nil, err
	}
	if process, err = im.ReadObject(t.Context(), image.ProcessObject); err != nil {
		return nil, nil, err
	}
	ix, err := im.LoadIndex(t.Context())
	if err != nil {
		return nil, nil, err
	}
	r := im.NewFrameReader(ix)
	defer r.Close()
	pages = make(map[page.Addr][]byte)
	for i := range ix.Frames() {
		plain, err := r.Read(t.Context(), i, image.Demand)
		if err != nil {
			return nil, nil, err
		}
		for _, run := range ix.FrameRuns(i) {
			for n := range int(run.Pages) {
				off := (int(run.Offset) + n) << page.Shift
				pages[run.Page+page.Addr(n)<<page.Shift] = bytes.Clone(plain[off : off+page.Size])
			}
		}
	}
	return pages, process, nil
}

// same reports whether two images give the same.
func same(a, b map[page.Addr][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for at, p := range a {
		if !bytes.Equal(b[at], p) {
			return false
		}
	}
	return true
}

// knownError reports whether err is one that a reader of a damaged image may
// give: damage, or a version that the flipped bit has made newer.
func knownError(err error) bool {
	return errors.Is(err, image.ErrDamaged) || errors.Is(err, image.ErrVersion)
}

// A flipped bit anywhere gives an error or the same bytes, and never other
// bytes; verify finds every one.
func TestBitFlips(t *testing.T) {
	for _, spec := range allSpecs {
		t.Run(spec.String(), func(t *testing.T) {
			mem, res := small(t, spec)
			want, _, err := contents(t, mem, "")
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range mem.Names() {
				good := mem.Get(name)
				step := max(1, len(good)/150)
				for i := 0; i < len(good); i += step {
					bad := bytes.Clone(good)
					bad[i] ^= 1 << (i % 8)
					m := mem.Clone()
					m.Set(name, bad)
					for _, digest := range []string{"", res.Digest} {
						got, _, err := contents(t, m, digest)
						if err != nil && !knownError(err) {
							t.Errorf("%s, byte %d, pinned %v: error of another kind: %v", name, i, digest != "", err)
						}
						if err == nil && !same(got, want) {
							t.Errorf("%s, byte %d, pinned %v: other bytes", name, i, digest != "")
						}
					}
					rep, err := image.Verify(t.Context(), m, image.VerifyOptions{Workers: 1})
					if err != nil && !errors.Is(err, image.ErrVersion) || err == nil && rep.OK() {
						t.Errorf("%s, byte %d: verify finds nothing: %v", name, i, err)
					}
				}
			}
		})
	}
}

// A truncated or missing object is damage, wherever it ends.
func TestTruncated(t *testing.T) {
	mem, _ := small(t, chunk.Spec{Codec: chunk.LZ4})
	for _, name := range mem.Names() {
		good := mem.Get(name)
		for _, n := range []int{-1, 0, 1, len(good) / 2, len(good) - 1} {
			if n >= len(good) {
				continue
			}
			m := mem.Clone()
			if n < 0 {
				m.Set(name, nil)
			} else {
				m.Set(name, bytes.Clone(good[:n]))
			}
			if _, _, err := contents(t, m, ""); err == nil || name != image.ManifestObject && !errors.Is(err, image.ErrDamaged) {
				t.Errorf("%s cut to %d of %d bytes: %v", name, n, len(good), err)
			}
			rep, err := image.Verify(t.Context(), m, image.VerifyOptions{})
			if err == nil && rep.OK() {
				t.Errorf("%s cut to %d of %d bytes: verify finds nothing", name, n, len(good))
			}
		}
	}
}

// Objects of two images cannot be mixed, even where sizes agree.
func TestSwapped(t *testing.T) {
	opts := image.WriterOptions{ChunkSize: page.Size}
	a, _ := imagetest.Write(t, opts, imagetest.Run{At: base, P: fill(1, []byte{2, 2})})
	b, _ := imagetest.Write(t, opts, imagetest.Run{At: base, P: fill(2, []byte{2, 2})})
	for _, names := range [][]string{{image.IndexObject}, {"pages.raw"}, {image.IndexObject, "pages.raw"}} {
		m := a.Clone()
		for _, name := range names {
			m.Set(name, b.Get(name))
		}
		if _, _, err := contents(t, m, ""); !errors.Is(err, image.ErrDamaged) {
			t.Errorf("%q of another image: %v", names, err)
		}
	}
	if _, _, err := contents(t, a, "sha256:"+strings.Repeat("0", 64)); !errors.Is(err, image.ErrDamaged) {
		t.Errorf("another digest: %v", err)
	}
}

// A damaged frame is named with its place and its addresses; the source hears
// of it; the other frames are still read, and verify goes on after it.
func TestDamagedFrame(t *testing.T) {
	mem, _ := small(t, chunk.Spec{Codec: chunk.LZ4})
	im, err := image.Open(t.Context(), mem, image.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ix, err := im.LoadIndex(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bad := bytes.Clone(mem.Get("pages.lz4"))
	for _, i := range []int{1, 2} {
		bad[ix.Frame(i).Offset] ^= 4
	}
	mem.Set("pages.lz4", bad)
	r := im.NewFrameReader(ix)
	_, err = r.Read(t.Context(), 1, image.Demand)
	var d *image.DamagedError
	if !errors.As(err, &d) || d.Frame != 1 || d.Object != "pages.lz4" || d.Offset != ix.Frame(1).Offset ||
		d.Range != (page.Range{Start: base + 2*page.Size, End: base + 3*page.Size}) {
		t.Errorf("error %#v", err)
	}
	if want := fmt.Sprintf("frame 1 of pages.lz4 (offset %d, memory 7f0000002000-7f0000003000): checksum mismatch", d.Offset); err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
	if got := mem.Rejected(); len(got) != 1 {
		t.Errorf("the source was told %q", got)
	}
	if _, ok, err := r.ReadNow(1); ok || !errors.Is(err, image.ErrDamaged) {
		t.Errorf("ReadNow: %v, %v", ok, err)
	}
	if _, err := r.ReadSpan(t.Context(), 0, ix.Frames(), image.Demand); !errors.As(err, &d) || d.Frame != 1 {
		t.Errorf("ReadSpan: %v", err)
	}
	if _, err := r.Read(t.Context(), 3, image.Demand); err != nil {
		t.Errorf("good frame: %v", err)
	}
	var last uint64
	rep, err := image.Verify(t.Context(), mem, image.VerifyOptions{Progress: func(done, total uint64) {
		if done < last || done > total {
			t.Errorf("progress %d of %d after %d", done, total, last)
		}
		last = done
	}})
	if err != nil || len(rep.Problems) != 2 || rep.Problems[0].Frame != 1 || rep.Problems[1].Frame != 2 || rep.Frames != ix.Frames() {
		t.Errorf("verify: %+v, %v", rep, err)
	}
	if last != rep.Bytes || last == 0 {
		t.Errorf("last progress %d, want %d", last, rep.Bytes)
	}
}

// A newer format is not damage, whatever else it has, and both versions are
// named.
func TestNewerVersion(t *testing.T) {
	mem, _ := small(t, chunk.Spec{})
	newer := bytes.Replace(mem.Get(image.ManifestObject), []byte(`"version": 1,`), []byte(`"version": 17,`), 1)
	other := bytes.Replace(newer, []byte(`"writer": "`), []byte(`"writer": 5, "by": "`), 1)
	for _, b := range [][]byte{newer, other} {
		mem.Set(image.ManifestObject, b)
		_, err := image.Open(t.Context(), mem, image.OpenOptions{})
		if !errors.Is(err, image.ErrVersion) || errors.Is(err, image.ErrDamaged) || !strings.Contains(err.Error(), "version 17") || !strings.Contains(err.Error(), "version 1") {
			t.Errorf("Open: %v", err)
		}
	}
}

// edit is the manifest of mem with a change and a right checksum.
func edit(t *testing.T, mem *imagetest.Mem, change func(*image.Manifest)) *imagetest.Mem {
	t.Helper()
	m, err := image.ParseManifest(mem.Get(image.ManifestObject))
	if err != nil {
		t.Fatal(err)
	}
	change(m)
	b, err := image.AppendManifest(nil, m)
	if err != nil {
		t.Fatal(err)
	}
	mem = mem.Clone()
	mem.Set(image.ManifestObject, b)
	return mem
}

// Whatever a manifest asks for, memory is taken for what is there.
func TestAbsurdManifest(t *testing.T) {
	mem, _ := small(t, chunk.Spec{Codec: chunk.Zstd})
	size := func(name string, n int64) func(*image.Manifest) {
		return func(m *image.Manifest) {
			o := m.Objects[name]
			o.Size = n
			m.Objects[name] = o
		}
	}
	for name, change := range map[string]func(*image.Manifest){
		"process of 2^50 bytes": size(image.ProcessObject, 1<<50),
		"index of 2^50 bytes":   size(image.IndexObject, 1<<50),
		"pages of 2^50 bytes":   size("pages.zst", 1<<50),
		"negative size":         size(image.ProcessObject, -1),
		"huge size":             size(image.ProcessObject, 1<<62),
		"chunk size":            func(m *image.Manifest) { m.ChunkSize = 1 << 40 },
		"other chunk size":      func(m *image.Manifest) { m.ChunkSize = 1 << 20 },
		"odd chunk size":        func(m *image.Manifest) { m.ChunkSize = 12345 },
		"page size":             func(m *image.Manifest) { m.Machine.PageSize = 1 },
		"codec":                 func(m *image.Manifest) { m.Codec = "brotli" },
		"other codec":           func(m *image.Manifest) { m.Codec = "lz4" },
		"layers":                func(m *image.Manifest) { m.Layers = []image.Layer{{}} },
		"no index":              func(m *image.Manifest) { delete(m.Objects, image.IndexObject) },
		"no process":            func(m *image.Manifest) { delete(m.Objects, image.ProcessObject) },
		"object elsewhere":      func(m *image.Manifest) { m.Objects["../x"] = m.Objects[image.ProcessObject] },
		"no hash":               size("process.bin\x00", 1),
		"bad root":              func(m *image.Manifest) { m.IndexRoot = strings.Repeat("0", 64) },
		"format":                func(m *image.Manifest) { m.Format = "other" },
		"version":               func(m *image.Manifest) { m.Version = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, err := contents(t, edit(t, mem, change), ""); err == nil || name != "no process" && !errors.Is(err, image.ErrDamaged) {
				t.Errorf("no damage found: %v", err)
			}
		})
	}
	big := mem.Clone()
	big.Set(image.ManifestObject, slices.Concat(mem.Get(image.ManifestObject), make([]byte, 2<<20)))
	if _, err := image.Open(t.Context(), big, image.OpenOptions{}); !errors.Is(err, image.ErrDamaged) {
		t.Errorf("manifest of 2 MiB: %v", err)
	}
}

// Fields that a later writer adds do not disturb.
func TestUnknownFields(t *testing.T) {
	mem, _ := small(t, chunk.Spec{})
	b := mem.Get(image.ManifestObject)
	at := bytes.LastIndex(b, []byte(`  "crc32c"`))
	b = append(bytes.Clone(b[:at]), "  \"hostname\": \"n17\",\n"...)
	m, err := image.ParseManifest(appendSum(b))
	if err != nil || m.ChunkSize != 2*page.Size {
		t.Errorf("ParseManifest: %v", err)
	}
}

// CRC-32C does not find a frame that was made to keep its checksum; a pinned
// digest and verify do.
func TestForgedFrame(t *testing.T) {
	mem, res := small(t, chunk.Spec{})
	forged := bytes.Clone(mem.Get("pages.raw"))
	// A multiple of the polynomial changes a message, but not its checksum.
	for i, b := range []byte{0xF1, 0x76, 0xEC, 0x05, 0x01} {
		forged[1000+i] ^= b
	}
	mem.Set("pages.raw", forged)
	if _, _, err := contents(t, mem, ""); err != nil {
		t.Fatalf("not a forged checksum: %v", err)
	}
	if _, _, err := contents(t, mem, res.Digest); !errors.Is(err, image.ErrDamaged) {
		t.Errorf("pinned: %v", err)
	}
	rep, err := image.Verify(t.Context(), mem, image.VerifyOptions{})
	if err != nil || len(rep.Problems) != 1 || rep.Problems[0].Frame != 0 {
		t.Errorf("verify: %v, %v", rep.Problems, err)
	}
}

// Nothing follows the frames but a seek table that lists them.
func TestAfterFrames(t *testing.T) {
	for _, spec := range allSpecs {
		mem, _ := small(t, spec)
		name := image.PagesObject(spec.Codec)
		mem.Set(name, append(bytes.Clone(mem.Get(name)), "more"...))
		mem = edit(t, mem, func(m *image.Manifest) { m.Objects[name] = image.Object{Size: m.Objects[name].Size + 4} })
		rep, err := image.Verify(t.Context(), mem, image.VerifyOptions{})
		if err != nil || len(rep.Problems) != 1 || rep.Problems[0].Object != name {
			t.Errorf("%v: %v, %v", spec, rep.Problems, err)
		}
	}
}

// A flaky is a source that knows its digest, and gives the manifest with a bit turned
// over bad times, and then, if lost, nothing.
type flaky struct {
	*imagetest.Mem
	digest   string
	bad      int
	lost     error
	rejected int
}

func (f *flaky) Digest() string { return f.digest }

func (f *flaky) ReadRange(ctx context.Context, object string, p []byte, off int64, lane image.Lane) error {
	if err := f.Mem.ReadRange(ctx, object, p, off, lane); err != nil {
		return err
	}
	if object == image.ManifestObject && f.bad > 0 {
		f.bad--
		i := bytes.IndexByte(p, '"') + 1 // in a name, or a value: it may well be read
		p[i] ^= 1
		return nil
	}
	return f.lost
}

func (f *flaky) Reject(object string, off, n int64, err error) (again bool) {
	if object == image.ManifestObject && off == 0 && errors.Is(err, image.ErrDamaged) {
		f.rejected++
	}
	return true
}

// A manifest that was damaged on its way is not believed, pinned or not, and read anew.
func TestManifestOfAnotherDigest(t *testing.T) {
	mem, res := small(t, chunk.Spec{Codec: chunk.LZ4})
	for _, digest := range []string{"", res.Digest} {
		f := &flaky{Mem: mem, digest: res.Digest, bad: 2}
		im, err := image.Open(t.Context(), f, image.OpenOptions{Digest: digest})
		if err != nil || im.Digest() != res.Digest || f.rejected != 2 {
			t.Errorf("damaged twice: %v, rejected %d times", err, f.rejected)
		}
		f = &flaky{Mem: mem, digest: res.Digest, bad: 100}
		if _, err := image.Open(t.Context(), f, image.OpenOptions{Digest: digest}); !errors.Is(err, image.ErrDamaged) {
			t.Errorf("damaged always: %v", err)
		}
		f = &flaky{Mem: mem, digest: res.Digest, bad: 1, lost: errors.New("lost")}
		if _, err := image.Open(t.Context(), f, image.OpenOptions{Digest: digest}); !errors.Is(err, f.lost) || errors.Is(err, image.ErrDamaged) {
			t.Errorf("damaged, then lost: %v", err)
		}
	}
}
