package chunk

import (
	"bytes"
	"errors"
	"runtime"
	"testing"
)

// A frame, whatever is in it, fills exactly the chunk or gives ErrFrame, and
// never makes the decoder take more memory than the chunk has.
func FuzzDecode(f *testing.F) {
	for _, spec := range allSpecs {
		enc, err := NewEncoder(spec)
		if err != nil {
			f.Fatal(err)
		}
		for _, plain := range [][]byte{text(4096), noise(4096), append(text(5000), noise(3192)...)} {
			frame, raw := enc.Encode(nil, plain)
			f.Add(byte(spec.Codec), raw, uint8(len(plain)/4096), frame)
		}
	}
	decoders := [...]*Decoder{NewDecoder(None), NewDecoder(Zstd), NewDecoder(S2), NewDecoder(LZ4), NewDecoder(9)}
	f.Fuzz(func(t *testing.T, codec byte, raw bool, pages uint8, frame []byte) {
		d := decoders[int(codec)%len(decoders)]
		const guard = 64
		n := int(pages) * 4096
		buf := bytes.Repeat([]byte{0xA5}, n+guard)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := d.Decode(buf[:n], frame, raw)
		runtime.ReadMemStats(&after)
		if err != nil && !errors.Is(err, ErrFrame) {
			t.Fatalf("error of another kind: %v", err)
		}
		if !bytes.Equal(buf[n:], bytes.Repeat([]byte{0xA5}, guard)) {
			t.Fatal("written past the end of the chunk")
		}
		// The first zstd frame makes the decoder's tables.
		if got := after.TotalAlloc - before.TotalAlloc; got > 4<<20 {
			t.Fatalf("%d bytes allocated", got)
		}
	})
}

// Whatever is encoded decodes to itself.
func FuzzRoundTrip(f *testing.F) {
	f.Add(byte(1), text(4096))
	f.Add(byte(8), append(noise(100), text(9000)...))
	f.Add(byte(8), bytes.Repeat([]byte{7}, 70_000))
	encoders := make([]*Encoder, len(allSpecs))
	decoders := make([]*Decoder, len(allSpecs))
	for i, spec := range allSpecs {
		encoders[i], _ = NewEncoder(spec)
		decoders[i] = NewDecoder(spec.Codec)
	}
	f.Fuzz(func(t *testing.T, spec byte, plain []byte) {
		i := int(spec) % len(allSpecs)
		frame, raw := encoders[i].Encode(nil, plain)
		got := make([]byte, len(plain))
		if len(plain) == 0 {
			return
		}
		if err := decoders[i].Decode(got, frame, raw); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, plain) {
			t.Fatal("decoded chunk differs")
		}
		if len(frame) > MaxFrame(allSpecs[i].Codec, len(plain)) || !raw && len(frame) >= len(plain) {
			t.Fatalf("%d bytes in a frame of %d, raw %v", len(plain), len(frame), raw)
		}
	})
}

// What a seek table parses to is written as it was.
func FuzzSeekTable(f *testing.F) {
	var st SeekTable
	f.Add(st.Append(nil))
	st.Add(100, 4096)
	st.Add(4105, 4096)
	f.Add(st.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		st, err := ParseSeekTable(b)
		if err != nil {
			if !errors.Is(err, ErrSeekTable) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		if again := st.Append(nil); !bytes.Equal(again, b) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}
