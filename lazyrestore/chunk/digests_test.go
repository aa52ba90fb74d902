package chunk

import (
	"math/rand/v2"
	"testing"
)

// Many messages at once have the digests that each has alone: all lengths around
// the ends of blocks, alone, in pairs of unlike lengths, and many.
func TestDigests(t *testing.T) {
	all := noise(1 << 16)
	check := func(lengths ...int) {
		t.Helper()
		data, out := make([][]byte, len(lengths)), make([]Digest, len(lengths))
		for i, n := range lengths {
			data[i] = all[i : i+n]
		}
		Digests(out, data)
		for i, p := range data {
			if want := DigestOf(p); out[i] != want {
				t.Fatalf("message %d of lengths %v: %x, not %x", i, lengths, out[i], want)
			}
		}
	}
	check()
	for n := range 200 {
		check(n)
		check(n, 5000)
		check(5000, n)
		check(n, n, n)
	}
	r := rand.New(rand.NewPCG(5, 6))
	for range 200 {
		lengths := make([]int, r.IntN(20))
		for i := range lengths {
			lengths[i] = r.IntN(1 << r.IntN(16))
		}
		check(lengths...)
	}
}

func FuzzDigests(f *testing.F) {
	f.Add([]byte{}, []byte{1}, []byte{2, 3})
	f.Add(noise(55), noise(56), noise(64))
	f.Add(noise(63), noise(119), noise(1000))
	f.Fuzz(func(t *testing.T, a, b, c []byte) {
		data, out := [][]byte{a, b, c}, make([]Digest, 3)
		Digests(out, data)
		for i, p := range data {
			if out[i] != DigestOf(p) {
				t.Fatalf("message %d of lengths %d, %d, %d", i, len(a), len(b), len(c))
			}
		}
	})
}
