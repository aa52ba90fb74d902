package image_test

import (
	"bytes"
	"errors"
	"io"
	"os/exec"
	"testing"

	seekable "github.com/SaveTheRbtz/zstd-seekable-format-go/pkg"
	"github.com/klauspost/compress/zstd"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// pages.zst is a file of the public zstd seekable format: any zstd reads it as
// one stream of the pages in order, and a reader that knows the format finds
// its way in it. Frames that did not shrink are no exception, with blocks of
// every size.
func TestZstdSeekable(t *testing.T) {
	for _, size := range []int{page.Size, chunk.DefaultSize, 1 << 20} {
		kinds := bytes.Repeat([]byte{1, 2, 0, 1}, 100)
		kinds = append(kinds, bytes.Repeat([]byte{2}, 600)...)
		memory := fill(9, kinds)
		var want []byte
		for i, k := range kinds {
			if k != 0 {
				want = append(want, memory[i*page.Size:(i+1)*page.Size]...)
			}
		}
		mem, _ := imagetest.Write(t, image.WriterOptions{Spec: chunk.Spec{Codec: chunk.Zstd}, ChunkSize: size},
			imagetest.Run{At: base, P: memory})
		file := mem.Get("pages.zst")

		dec, err := zstd.NewReader(nil)
		if err != nil {
			t.Fatal(err)
		}
		defer dec.Close()
		if plain, err := dec.DecodeAll(file, nil); err != nil || !bytes.Equal(plain, want) {
			t.Errorf("chunks of %d: as a stream: %d bytes, %v, want %d", size, len(plain), err, len(want))
		}
		r, err := seekable.NewReader(bytes.NewReader(file), dec)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := r.Seek(0, io.SeekEnd); err != nil || n != int64(len(want)) {
			t.Errorf("chunks of %d: size %d, %v, want %d", size, n, err, len(want))
		}
		p := make([]byte, 100_000)
		for _, off := range []int64{0, 12345, int64(len(want)) - 100_000} {
			if _, err := r.ReadAt(p, off); err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(p, want[off:off+100_000]) {
				t.Errorf("chunks of %d: at %d: %v, or other content", size, off, err)
			}
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		zstdCLI(t, file, want)
	}
}

// zstdCLI compares with the zstd command, on machines that have it.
func zstdCLI(t *testing.T, file, want []byte) {
	t.Helper()
	path, err := exec.LookPath("zstd")
	if err != nil {
		t.Log("no zstd command here")
		return
	}
	cmd := exec.CommandContext(t.Context(), path, "-dc")
	cmd.Stdin = bytes.NewReader(file)
	if plain, err := cmd.Output(); err != nil || !bytes.Equal(plain, want) {
		t.Errorf("zstd -dc: %d bytes, %v, want %d", len(plain), err, len(want))
	}
}
