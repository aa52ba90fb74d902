package pagexfer

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// A header that is read is written as it was, but for the padding.
func FuzzHeader(f *testing.F) {
	for _, d := range dialects {
		for _, h := range samples {
			f.Add(d == V42, header(f, d, h))
		}
	}
	f.Fuzz(func(t *testing.T, wide bool, b []byte) {
		d := V41
		if wide {
			d = V42
		}
		if len(b) < d.HeaderSize() {
			return
		}
		b = b[:d.HeaderSize()]
		h, err := d.Parse(b)
		if err != nil {
			if !errors.Is(err, ErrProtocol) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		if wide {
			clear(b[4:8])
		}
		if got := header(t, d, h); !bytes.Equal(got, b) {
			t.Fatalf("%x became %x", b, got)
		}
		if r := h.Range(); h.Follows() > 0 && r.Empty() {
			t.Fatalf("%s: range %s", h, r)
		}
	})
}

// Whatever a client says, the decoder ends, and what it gives can be written
// and read again in the dialect that it found.
func FuzzDecoder(f *testing.F) {
	for _, d := range dialects {
		var stream []byte
		for _, h := range samples {
			stream = append(stream, header(f, d, h)...)
			stream = append(stream, pages(int(min(h.Follows()>>page.Shift, 2)))...)
		}
		f.Add(stream)
		f.Add(header(f, d, samples[10]))
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		r := bytes.NewReader(stream)
		dec := NewDecoder(r)
		for {
			h, err := dec.Next()
			if err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, ErrProtocol) {
					t.Fatalf("error of another kind: %v", err)
				}
				return
			}
			if again, err := dec.Dialect().Parse(header(t, dec.Dialect(), h)); err != nil || again != h {
				t.Fatalf("%s came back as %s, %v", h, again, err)
			}
			if _, err := io.CopyN(io.Discard, r, int64(h.Follows())); err != nil {
				return
			}
		}
	})
}

// Whatever a server says, a client gives only what it has asked for.
func FuzzClient(f *testing.F) {
	for _, d := range dialects {
		reply := header(f, d, Header{Command: AddF, Flags: Present, Pages: 1, Addr: 0x1000, ID: 7})
		f.Add(d == V42, append(reply, pages(1)...))
		f.Add(d == V42, append(bytes.Clone(reply), 0))
	}
	f.Fuzz(func(t *testing.T, wide bool, in []byte) {
		d := V41
		if wide {
			d = V42
		}
		c := NewClient(struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(in), io.Discard}, d)
		asked := []Request{{7, 0x1000, 1}, {7, 0x2000, 2}, {9, 0x7fff_ffff_f000, 1}}
		for _, r := range asked {
			if err := c.Request(r); err != nil {
				t.Fatal(err)
			}
		}
		room := make([]byte, 2<<page.Shift)
		for i := 0; ; i++ {
			r, n, err := c.Receive(room)
			if err != nil {
				return
			}
			if i >= len(asked) || r != asked[i] || n < 1 || n > r.Pages {
				t.Fatalf("reply %d: %d pages of %+v", i, n, r)
			}
		}
	})
}
