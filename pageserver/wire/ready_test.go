package wire_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

var errPause = errors.New("nothing has come")

// A halting gives one byte at a time, and between two of them says that nothing has come.
type halting struct {
	r      io.Reader
	paused bool
}

func (h *halting) Read(p []byte) (int, error) {
	if h.paused = !h.paused; h.paused {
		return 0, errPause
	}
	return h.r.Read(p[:1])
}

// Whoever finds nothing has lost nothing: a message is there as a whole, or not yet.
func TestReadyLosesNothing(t *testing.T) {
	const size = 5
	var b []byte
	for id := range uint32(3) {
		b = wire.AppendDone(b, id+1)
		b = wire.AppendData(b, id+1, wire.FlagLast, wire.Data{Size: size, Length: size})
		b = append(b, "bytes"...) // that nobody reads
		b = (&wire.Error{Code: wire.CodeFailed, Text: "it has failed"}).Append(b, id+1)
	}
	h := &halting{r: bytes.NewReader(b)}
	dec := wire.NewDecoder(h, wire.Client, 64)
	pauses, got := 0, 0
	for {
		err := dec.Ready()
		if errors.Is(err, errPause) {
			pauses++
			continue
		}
		if err == io.EOF { //nolint:errorlint // it is bare
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		m, err := dec.Next()
		if err != nil {
			t.Fatalf("message %d is said to be there: %v", got, err)
		}
		if want := []wire.Type{wire.TypeDone, wire.TypeData, wire.TypeError}[got%3]; m.Type != want || int(m.ID) != got/3+1 {
			t.Errorf("message %d is %v of %d", got, m.Type, m.ID)
		}
		got++
	}
	if got != 9 || pauses < len(b) {
		t.Errorf("%d messages, and %d times there was none", got, pauses)
	}
}

// A stream that ends within a message ends too soon.
func TestReadyAtTheEnd(t *testing.T) {
	whole := wire.AppendData(nil, 1, wire.FlagLast, wire.Data{Size: 5, Length: 5})
	for n := range whole {
		want := io.ErrUnexpectedEOF
		if n == 0 {
			want = io.EOF
		}
		if err := wire.NewDecoder(bytes.NewReader(whole[:n]), wire.Client, 64).Ready(); !errors.Is(err, want) {
			t.Errorf("after %d bytes: %v, want %v", n, err, want)
		}
	}
}
