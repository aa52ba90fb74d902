package image_test

import (
	"bytes"
	"errors"
	"io"
	"math"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
)

// What an object is said to have is read, or found to be a lie, in memory for
// what is there.
func TestReadWhole(t *testing.T) {
	want := bytes.Repeat([]byte{1, 2, 3, 4, 5, 6, 7}, 2<<20)
	m := new(imagetest.Mem)
	m.Set("eager.raw", want)
	for _, size := range []int{0, 1, 4 << 20, 4<<20 + 1, len(want) - 9} {
		b, err := image.ReadWhole(t.Context(), m, "eager.raw", 9, int64(size))
		if err != nil || !bytes.Equal(b, want[9:9+size]) {
			t.Errorf("%d bytes: %d other ones, %v", size, len(b), err)
		}
	}
	for _, size := range []int64{int64(len(want)) + 1, 1 << 50, math.MaxInt64 - 9} {
		if _, err := image.ReadWhole(t.Context(), m, "eager.raw", 9, size); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d bytes of %d: %v, want ErrUnexpectedEOF", size, len(want), err)
		}
	}
}

// Something else than a digest is found before anything is read.
func TestOpenWithNoDigest(t *testing.T) {
	for _, digest := range []string{"sha256:", "sha256:12", "md5"} {
		if _, err := image.Open(t.Context(), new(imagetest.Mem), image.OpenOptions{Digest: digest}); err == nil || errors.Is(err, image.ErrDamaged) {
			t.Errorf("%q: %v", digest, err)
		}
	}
}
