package chunk

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"runtime"
	"testing"
)

var allSpecs = []Spec{{None, 0}, {Zstd, 0}, {Zstd, 1}, {Zstd, 2}, {Zstd, 3}, {Zstd, 4}, {S2, 1}, {S2, 2}, {LZ4, 0}}

func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

func text(n int) []byte { return bytes.Repeat([]byte("lazily restored "), n/16+1)[:n] }

func TestRoundTrip(t *testing.T) {
	for _, spec := range allSpecs {
		t.Run(spec.String(), func(t *testing.T) {
			enc, err := NewEncoder(spec)
			if err != nil {
				t.Fatal(err)
			}
			dec := NewDecoder(spec.Codec)
			defer dec.Close()
			for _, plain := range [][]byte{
				make([]byte, 4096), noise(4096), text(4096), text(64 << 10), noise(64 << 10),
				append(noise(32<<10), text(32<<10)...), text(1 << 20), noise(1 << 20), noise(128<<10 + 4096),
			} {
				prefix := []byte("prefix")
				out, raw := enc.Encode(prefix, plain)
				if !bytes.HasPrefix(out, prefix) {
					t.Fatal("Encode lost what dst held")
				}
				frame := out[len(prefix):]
				if len(frame) > MaxFrame(spec.Codec, len(plain)) {
					t.Fatalf("frame of %d bytes, MaxFrame says %d", len(frame), MaxFrame(spec.Codec, len(plain)))
				}
				if !raw && len(frame) >= len(plain) {
					t.Fatalf("frame of %d bytes for a chunk of %d is not raw", len(frame), len(plain))
				}
				got := noise(len(plain))
				if err := dec.Decode(got, frame, raw); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, plain) {
					t.Fatal("decoded chunk differs")
				}
			}
		})
	}
}

func TestParseSpec(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want Spec
		ok   bool
	}{
		{"none", Spec{}, true},
		{"zstd", Spec{Codec: Zstd}, true},
		{"zstd:3", Spec{Zstd, 3}, true},
		{"s2:2", Spec{S2, 2}, true},
		{"lz4", Spec{Codec: LZ4}, true},
		{"", Spec{}, false},
		{"gzip", Spec{}, false},
		{"zstd:", Spec{}, false},
		{"zstd:0", Spec{}, false},
		{"zstd:5", Spec{}, false},
		{"zstd:-1", Spec{}, false},
		{"lz4:1", Spec{}, false},
		{"none:1", Spec{}, false},
	} {
		got, err := ParseSpec(tt.in)
		if got != tt.want || (err == nil) != tt.ok || err != nil && !errors.Is(err, ErrCodec) {
			t.Errorf("ParseSpec(%q) = %v, %v, want %v", tt.in, got, err, tt.want)
		}
		if err == nil && got.String() != tt.in {
			t.Errorf("ParseSpec(%q).String() = %q", tt.in, got)
		}
	}
}

func TestIsZero(t *testing.T) {
	for _, n := range []int{0, 1, 15, 16, 4096, 5000, 3 * 4096} {
		p := make([]byte, n)
		if !IsZero(p) {
			t.Errorf("%d zeros are not zero", n)
		}
		for i := range p {
			p[i] = 1
			if IsZero(p) {
				t.Errorf("%d bytes with a one at %d are zero", n, i)
			}
			p[i] = 0
		}
	}
}

// raceEnabled is set where the race detector, which allocates, is built in.
var raceEnabled bool

// Once its buffers are there, neither encoding nor decoding allocates.
func TestNoAllocation(t *testing.T) {
	for _, spec := range allSpecs {
		enc, err := NewEncoder(spec)
		if err != nil {
			t.Fatal(err)
		}
		dec := NewDecoder(spec.Codec)
		for _, plain := range [][]byte{text(DefaultSize), noise(DefaultSize)} {
			dst := make([]byte, 0, enc.Room(len(plain)))
			out := make([]byte, len(plain))
			n := testing.AllocsPerRun(20, func() {
				frame, raw := enc.Encode(dst, plain)
				if err := dec.Decode(out, frame, raw); err != nil {
					t.Fatal(err)
				}
			})
			if n >= 1 && !raceEnabled {
				t.Errorf("%v: %v allocations a chunk", spec, n)
			}
		}
		dec.Close()
	}
}

// A small frame that claims to be large costs no memory.
func TestDecodeBomb(t *testing.T) {
	for _, spec := range []Spec{{Codec: Zstd}, {Codec: S2}, {Codec: LZ4}} {
		enc, err := NewEncoder(spec)
		if err != nil {
			t.Fatal(err)
		}
		bomb, _ := enc.Encode(nil, make([]byte, MaxSize))
		dec := NewDecoder(spec.Codec)
		defer dec.Close()
		small, raw := enc.Encode(nil, text(4096))
		dst := make([]byte, 4096)
		if err := dec.Decode(dst, small, raw); err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err = dec.Decode(dst, bomb, false)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrFrame) {
			t.Errorf("%v: %v", spec, err)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
			t.Errorf("%v: %d bytes allocated for a chunk of 4096", spec, n)
		}
	}
}
