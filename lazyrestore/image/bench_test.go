package image_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// discard is a sink that keeps nothing.
type discard struct{}

func (discard) Create(string) (io.WriteCloser, error) { return discard{}, nil }
func (discard) Write(p []byte) (int, error)           { return len(p), nil }
func (discard) Close() error                          { return nil }

// mixed is memory of n pages as processes have it: a tenth of zero pages, a
// tenth that does not shrink, the rest structures.
func mixed(n int) []byte {
	r := rand.New(rand.NewPCG(3, 4))
	b := make([]byte, n*page.Size)
	for i := 0; i < n; i++ {
		p := b[i*page.Size : (i+1)*page.Size]
		switch k := i / 50 % 10; k {
		case 0:
		case 1:
			copy(p, fill(uint64(i), []byte{2}))
		default:
			for j := 0; j < len(p); j += 32 {
				p[j], p[j+1], p[j+2], p[j+4], p[j+5] = byte(r.IntN(256)), byte(r.IntN(256)), byte(r.IntN(16)), 0x12, 0x7f
				p[j+8] = byte(r.IntN(100))
				p[j+16], p[j+17] = byte(r.IntN(256)), byte(r.IntN(256))
			}
		}
	}
	return b
}

// BenchmarkWrite is the Writer from memory to a sink that keeps nothing.
func BenchmarkWrite(b *testing.B) {
	memory := mixed(32 << 20 >> page.Shift)
	for _, spec := range allSpecs {
		for _, size := range []int{page.Size, chunk.DefaultSize} {
			b.Run(fmt.Sprintf("codec=%v/chunk=%d", spec, size), func(b *testing.B) {
				w, err := image.NewWriter(discard{}, image.WriterOptions{Spec: spec, ChunkSize: size})
				if err != nil {
					b.Fatal(err)
				}
				defer w.Abort()
				b.SetBytes(int64(len(memory)))
				b.ReportAllocs()
				at := page.Addr(0)
				for b.Loop() {
					for i := 0; i < len(memory); i += 4 << 20 {
						if err := w.WriteRun(b.Context(), at, memory[i:i+4<<20], nil); err != nil {
							b.Fatal(err)
						}
						at += 4 << 20
					}
				}
				if _, err := w.Finish(b.Context(), image.Manifest{}); err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}

// sparse is an image of n frames of one page each.
func sparse(b *testing.B, n int) *image.Image {
	b.Helper()
	m := new(imagetest.Mem)
	w, err := image.NewWriter(m, image.WriterOptions{ChunkSize: page.Size})
	if err != nil {
		b.Fatal(err)
	}
	defer w.Abort()
	p := make([]byte, 1024*page.Size)
	for i := range p {
		p[i] = 1
	}
	for i := 0; i < n; i += 1024 {
		if err := w.WriteRun(b.Context(), page.Addr(i)<<page.Shift, p, nil); err != nil {
			b.Fatal(err)
		}
	}
	if _, err := w.Finish(b.Context(), image.Manifest{}); err != nil {
		b.Fatal(err)
	}
	im, err := image.Open(b.Context(), m, image.OpenOptions{})
	if err != nil {
		b.Fatal(err)
	}
	return im
}

// BenchmarkLoadIndex is the index of 4 GiB in chunks of 64 KiB, and that of
// 1 GiB in chunks of a page.
func BenchmarkLoadIndex(b *testing.B) {
	for _, frames := range []int{64 << 10, 256 << 10} {
		b.Run(fmt.Sprintf("frames=%d", frames), func(b *testing.B) {
			im := sparse(b, frames)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := im.LoadIndex(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkLookup(b *testing.B) {
	const frames = 64 << 10
	im := sparse(b, frames)
	ix, err := im.LoadIndex(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	r := rand.New(rand.NewPCG(5, 6))
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := ix.Lookup(page.Addr(r.IntN(frames)) << page.Shift); !ok {
			b.Fatal("not found")
		}
	}
}

// BenchmarkRead is a worker's way from the source's memory to plain data.
func BenchmarkRead(b *testing.B) {
	for _, spec := range allSpecs {
		for _, span := range []int{1, 16} {
			b.Run(fmt.Sprintf("codec=%v/span=%d", spec, span), func(b *testing.B) {
				mem, _ := imagetest.Write(b, image.WriterOptions{Spec: spec}, imagetest.Run{P: mixed(16 << 20 >> page.Shift)})
				im, err := image.Open(b.Context(), mem, image.OpenOptions{})
				if err != nil {
					b.Fatal(err)
				}
				ix, err := im.LoadIndex(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				r := im.NewFrameReader(ix)
				defer r.Close()
				b.ReportAllocs()
				i, bytes := 0, 0
				for b.Loop() {
					if i+span > ix.Frames() {
						i = 0
					}
					p, err := r.ReadSpan(b.Context(), i, span, image.Background)
					if err != nil {
						b.Fatal(err)
					}
					i, bytes = i+span, bytes+len(p)
				}
				b.SetBytes(int64(bytes / b.N))
			})
		}
	}
}
