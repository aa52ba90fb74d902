package pagexfer

import (
	"errors"
	"fmt"
	"io"
)

// A Decoder reads the headers of a client. It belongs to one goroutine.
//
// It reads exactly the headers, so that what follows one can be read from the
// reader itself, and must be before the next header is.
type Decoder struct {
	r       io.Reader
	dialect Dialect
	known   bool
	buf     [maxHeader]byte
}

// NewDecoder reads headers from r, in the dialect that the first one shows.
func NewDecoder(r io.Reader) *Decoder { return &Decoder{r: r} }

// Dialect is the client's, once the first header has been read.
func (d *Decoder) Dialect() Dialect { return d.dialect }

// Next reads a header. The error is io.EOF where the client closed the
// connection between two of them, the reader's own, or wraps ErrProtocol.
func (d *Decoder) Next() (Header, error) {
	b := d.buf[:minHeader]
	if n, err := io.ReadFull(d.r, b); err != nil {
		if n == 0 && errors.Is(err, io.EOF) {
			return Header{}, io.EOF
		}
		return Header{}, fmt.Errorf("read header: %w", err)
	}
	if !d.known {
		dialect, err := Detect(b)
		if err != nil {
			return Header{}, err
		}
		d.dialect, d.known = dialect, true
	}
	if d.dialect == V42 {
		if _, err := io.ReadFull(d.r, d.buf[minHeader:]); err != nil {
			return Header{}, fmt.Errorf("read header: %w", noEOF(err))
		}
		b = d.buf[:]
	}
	return d.dialect.Parse(b)
}

// noEOF is err, but for the end of a stream in the middle of something.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
