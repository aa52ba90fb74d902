package chunk

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/pierrec/lz4/v4"
)

type sample struct {
	name  string
	plain []byte
}

// samples are chunks as processes have them.
func samples() []sample {
	// Doubles of a simulation: close to each other, with noise in the low bits.
	doubles := make([]byte, DefaultSize)
	r := rand.New(rand.NewPCG(1, 2))
	for i := 0; i < len(doubles); i += 8 {
		v := math.Sin(float64(i)/5000) + float64(r.IntN(1000))/1e6
		binary.LittleEndian.PutUint64(doubles[i:], math.Float64bits(math.Round(v*1e4)/1e4))
	}
	// Structures of a program: pointers, small numbers and zeros.
	structs := make([]byte, DefaultSize)
	for i := 0; i < len(structs); i += 32 {
		binary.LittleEndian.PutUint64(structs[i:], 0x7f1200000000+uint64(r.IntN(1<<20))*16)
		binary.LittleEndian.PutUint64(structs[i+8:], uint64(r.IntN(100)))
		binary.LittleEndian.PutUint32(structs[i+16:], uint32(r.IntN(1<<16)))
	}
	return []sample{{"doubles", doubles}, {"structs", structs}, {"text", text(DefaultSize)}, {"noise", noise(DefaultSize)}}
}

func BenchmarkEncode(b *testing.B) {
	for _, spec := range []Spec{{Zstd, 1}, {Zstd, 2}, {S2, 1}, {LZ4, 0}} {
		for _, s := range samples() {
			b.Run("codec="+spec.String()+"/data="+s.name, func(b *testing.B) {
				enc, err := NewEncoder(spec)
				if err != nil {
					b.Fatal(err)
				}
				var frame []byte
				b.SetBytes(int64(len(s.plain)))
				b.ReportAllocs()
				for b.Loop() {
					frame, _ = enc.Encode(frame[:0], s.plain)
				}
				b.ReportMetric(float64(len(s.plain))/float64(len(frame)), "ratio")
			})
		}
	}
}

// BenchmarkLZ4 holds our encoder of LZ4 blocks against the library's, on the
// samples and on the file CHUNK_BENCH_FILE if there is one.
func BenchmarkLZ4(b *testing.B) {
	data := samples()
	if path := os.Getenv("CHUNK_BENCH_FILE"); path != "" {
		file, err := os.ReadFile(path)
		if err != nil {
			b.Fatal(err)
		}
		data = append(data, sample{"file", file})
	}
	var lib lz4.Compressor
	var e lz4Encoder
	encoders := map[string]func(dst, src []byte) int{
		"own":    e.encode,
		"own-go": func(dst, src []byte) int { return e.blocks(dst, src, lz4SegmentGo) },
		"lib": func(dst, src []byte) int {
			n, err := lib.CompressBlock(src, dst)
			if n == 0 || err != nil {
				return len(src)
			}
			return n
		},
	}
	for _, s := range data {
		for name, encode := range encoders {
			b.Run("data="+s.name+"/encoder="+name, func(b *testing.B) {
				frame := make([]byte, lz4Room(DefaultSize))
				in, out := 0, 0
				b.SetBytes(int64(len(s.plain) / DefaultSize * DefaultSize))
				for b.Loop() {
					for p := s.plain; len(p) >= DefaultSize; p = p[DefaultSize:] {
						n := encode(frame, p[:DefaultSize])
						in, out = in+DefaultSize, out+min(n, DefaultSize)
					}
				}
				b.ReportMetric(float64(in)/float64(out), "ratio")
			})
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, spec := range []Spec{{Zstd, 1}, {S2, 1}, {LZ4, 0}} {
		for _, s := range samples() {
			b.Run("codec="+spec.String()+"/data="+s.name, func(b *testing.B) {
				enc, err := NewEncoder(spec)
				if err != nil {
					b.Fatal(err)
				}
				dec := NewDecoder(spec.Codec)
				defer dec.Close()
				frame, raw := enc.Encode(nil, s.plain)
				dst := make([]byte, len(s.plain))
				b.SetBytes(int64(len(s.plain)))
				b.ReportAllocs()
				for b.Loop() {
					if err := dec.Decode(dst, frame, raw); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkSums(b *testing.B) {
	p := noise(DefaultSize)
	b.Run("sum=crc32c", func(b *testing.B) {
		b.SetBytes(int64(len(p)))
		for b.Loop() {
			Checksum(p)
		}
	})
	b.Run("sum=sha256", func(b *testing.B) {
		b.SetBytes(int64(len(p)))
		for b.Loop() {
			DigestOf(p)
		}
	})
	b.Run("sum=sha256-of-16", func(b *testing.B) {
		data, out := make([][]byte, 16), make([]Digest, 16)
		for i := range data {
			data[i] = p[:len(p)-1000*i]
			b.SetBytes(int64(16*len(p) - 1000*120))
		}
		for b.Loop() {
			Digests(out, data)
		}
	})
	b.Run("sum=zero", func(b *testing.B) {
		z := make([]byte, 4096)
		b.SetBytes(int64(len(z)))
		for b.Loop() {
			IsZero(z)
		}
	})
}
