package chunk

import (
	"bytes"
	"math/rand/v2"
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
