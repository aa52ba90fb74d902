package chunk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// strictLZ4 decodes an LZ4 block and holds it to all that lz4_Block_format.md
// says, also that which decoders let pass.
func strictLZ4(b []byte) ([]byte, error) {
	var out []byte
	length := func(n int) int {
		for more := n == 15; more; {
			if len(b) == 0 {
				return 1 << 30
			}
			n, more, b = n+int(b[0]), b[0] == 255, b[1:]
		}
		return n
	}
	for lastMatch, matched := 0, false; len(b) > 0; {
		token := b[0]
		b = b[1:]
		lits := length(int(token >> 4))
		if lits > len(b) {
			return nil, errors.New("literals beyond the block's end")
		}
		out, b = append(out, b[:lits]...), b[lits:]
		if len(b) == 0 {
			switch {
			case token&15 != 0:
				return nil, errors.New("a match is announced at the end")
			case matched && lits < 5:
				return nil, fmt.Errorf("ends in %d literals", lits)
			case matched && len(out)-lastMatch < 12:
				return nil, fmt.Errorf("the last match begins %d bytes before the end", len(out)-lastMatch)
			}
			return out, nil
		}
		if len(b) < 2 {
			return nil, errors.New("no offset")
		}
		offset := int(binary.LittleEndian.Uint16(b))
		b = b[2:]
		n := length(int(token&15)) + 4
		if offset == 0 || offset > len(out) || n > 1<<28 {
			return nil, fmt.Errorf("a match of %d bytes %d back at %d", n, offset, len(out))
		}
		lastMatch, matched = len(out), true
		for range n {
			out = append(out, out[len(out)-offset])
		}
	}
	return nil, errors.New("no last literals")
}

func checkLZ4(t *testing.T, e *lz4Encoder, plain []byte) {
	t.Helper()
	const guard = 0xA5
	room := lz4Room(len(plain))
	dst := bytes.Repeat([]byte{guard}, room+8)
	n := e.encode(dst[:room], plain)
	same := make([]byte, room)
	if m := e.blocks(same, plain, lz4SegmentGo); !bytes.Equal(dst[:n], same[:m]) {
		t.Fatalf("%d bytes became %d, in Go %d, or other ones", len(plain), n, m)
	}
	if got, err := strictLZ4(dst[:n]); err != nil || !bytes.Equal(got, plain) {
		t.Fatalf("%d bytes became %d, which give %d: %v", len(plain), n, len(got), err)
	}
	if !bytes.Equal(dst[len(dst)-8:], bytes.Repeat([]byte{guard}, 8)) {
		t.Fatal("written beyond the room")
	}
}

// Blocks are as the format wants them, for every length around its rules, for
// matches across the segments of long chunks, and where nothing shrinks; and the
// same whether assembler or Go makes them.
func TestLZ4Strict(t *testing.T) {
	var e lz4Encoder
	for n := 1; n < 80; n++ {
		checkLZ4(t, &e, make([]byte, n))
		checkLZ4(t, &e, noise(n))
		checkLZ4(t, &e, text(n))
		checkLZ4(t, &e, append(noise(n), noise(n)...))
	}
	r := rand.New(rand.NewPCG(3, 4))
	for _, n := range []int{4096, lz4Segment - 1, lz4Segment, lz4Segment + 1, lz4Segment + 13, 3*lz4Segment + 100, 1 << 20} {
		checkLZ4(t, &e, make([]byte, n))
		checkLZ4(t, &e, noise(n))
		// Copies of what was before, of all lengths and from all distances.
		plain := noise(64)
		for len(plain) < n {
			from := r.IntN(len(plain))
			plain = append(plain, plain[from:min(len(plain), from+1+r.IntN(1<<r.IntN(14)))]...)
			plain = append(plain, noise(64)[:r.IntN(40)]...)
		}
		checkLZ4(t, &e, plain[:n])
	}
}

// Nothing before or behind a chunk is read: it lies between pages that nobody
// may touch, at either end.
func TestLZ4Bounds(t *testing.T) {
	var e lz4Encoder
	const pages = 3
	memory, err := syscall.Mmap(-1, 0, (pages+2)*page.Size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Munmap(memory)
	middle := memory[page.Size : (pages+1)*page.Size]
	part := append(noise(100), make([]byte, 60)...)
	for i := range middle {
		middle[i] = part[i%len(part)] ^ byte(i/1000)
	}
	for _, edge := range [][]byte{memory[:page.Size], memory[(pages+1)*page.Size:]} {
		if err := syscall.Mprotect(edge, syscall.PROT_NONE); err != nil {
			t.Fatal(err)
		}
	}
	for n := 1; n < len(middle); n += 1 + n/40 {
		checkLZ4(t, &e, middle[:n])
		checkLZ4(t, &e, middle[len(middle)-n:])
	}
}

func FuzzLZ4Encode(f *testing.F) {
	f.Add(text(100), uint16(1), uint16(0))
	f.Add(noise(300), uint16(7), uint16(3))
	f.Add(append(noise(100), make([]byte, 40)...), uint16(700), uint16(65))
	var e lz4Encoder
	f.Fuzz(func(t *testing.T, part []byte, times, cut uint16) {
		if len(part) == 0 {
			return
		}
		plain := bytes.Repeat(part, min(int(times), 1<<18/len(part))+1)
		plain = plain[min(int(cut), len(plain)-1):]
		checkLZ4(t, &e, plain)
	})
}
