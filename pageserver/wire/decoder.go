package wire

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
)

// A Message is one that a Decoder has read.
type Message struct {
	Header
	Body []byte // but of DATA; valid until the next call
	Data Data   // of DATA
}

// A Decoder reads messages from a stream. It belongs to one goroutine.
type Decoder struct {
	r     *bufio.Reader
	side  Side
	head  [HeaderSize]byte
	fixed [DataSize]byte
	body  []byte
	left  int  // payload of the last message that nobody has read
	amid  bool // the header of a message has been read, and not all that is behind it
}

// A Side of a connection.
type Side uint8

// The sides.
const (
	Server Side = iota // reads HELLO and requests
	Client             // reads HELLO and replies
)

// NewDecoder reads from r what a side is sent. The buffer has size bytes, at
// least 16; reads of payload that are larger go past it.
func NewDecoder(r io.Reader, side Side, size int) *Decoder {
	return &Decoder{r: bufio.NewReaderSize(r, size), side: side}
}

// limit is how long a body may be.
func (d *Decoder) limit(t Type) uint32 {
	switch {
	case d.side == Server || t == TypeHello:
		return MaxRequest
	case t == TypeData:
		return DataSize + MaxData
	}
	return MaxReply
}

// Next reads a message: header, body and checksum; of DATA the payload is left
// to ReadPayload, and what is not read of it passed over by the next Next. The
// error is io.EOF between two messages, io.ErrUnexpectedEOF within one, an
// ErrMalformed, or the stream's own; where that comes before a whole header is
// there (a deadline), nothing is lost and Next may be called again (Between).
//
// Types that Next does not know are read like others.
func (d *Decoder) Next() (Message, error) {
	if err := d.skip(); err != nil {
		return Message{}, err
	}
	if err := d.header(); err != nil {
		return Message{}, err
	}
	d.amid = true
	m, err := d.behindHeader()
	d.amid = err != nil
	return m, err
}

// Between reports whether Next, which has failed, may be called again: nothing of a message
// has been read that it does not read again.
func (d *Decoder) Between() bool { return !d.amid && d.left == 0 }

// behindHeader reads what is behind a header, which has been read.
func (d *Decoder) behindHeader() (Message, error) {
	h, err := parseHeader(&d.head)
	if err != nil {
		return Message{}, err
	}
	if limit := d.limit(h.Type); h.Length > limit {
		return Message{}, malformed("%v with a body of %d bytes, at most %d are allowed", h.Type, h.Length, limit)
	}
	m := Message{Header: h}
	if h.Type == TypeData && d.side == Client {
		err := d.data(&m)
		return m, err
	}
	if cap(d.body) < int(h.Length) {
		d.body = make([]byte, h.Length)
	}
	m.Body = d.body[:h.Length]
	if err := d.full(m.Body); err != nil {
		return Message{}, err
	}
	return m, d.check(h, m.Body)
}

// header reads the next header.
func (d *Decoder) header() error {
	b, err := d.r.Peek(HeaderSize)
	if err == io.EOF && len(b) > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return err
	}
	copy(d.head[:], b)
	_, err = d.r.Discard(HeaderSize)
	return err
}

// data reads what is before the payload of a DATA.
func (d *Decoder) data(m *Message) error {
	if m.Length < DataSize {
		return malformed("%v with a body of %d bytes", m.Type, m.Length)
	}
	if err := d.full(d.fixed[:]); err != nil {
		return err
	}
	if err := d.check(m.Header, d.fixed[:]); err != nil {
		return err
	}
	p := parser{b: d.fixed[:]}
	m.Data = Data{Offset: p.offset("the offset"), Size: p.offset("the size"), Length: int(m.Length) - DataSize}
	if p.err == nil && (m.Data.Offset > m.Data.Size || int64(m.Data.Length) > m.Data.Size-m.Data.Offset) {
		p.err = malformed("%v of %d bytes at %d of an object of %d bytes", m.Type, m.Data.Length, m.Data.Offset, m.Data.Size)
	}
	if p.err == nil {
		d.left = m.Data.Length
	}
	return p.err
}

func (d *Decoder) check(h Header, body []byte) error {
	want := binary.LittleEndian.Uint32(d.head[12:])
	if got := checksum(d.head[:12], body); got != want {
		return malformed("checksum of %v is %08x, not %08x", h.Type, got, want)
	}
	return nil
}

// full fills b; the stream does not end within a message.
func (d *Decoder) full(b []byte) error {
	_, err := io.ReadFull(d.r, b)
	if err == io.EOF && len(b) > 0 {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// ReadPayload fills p with the next bytes of the last DATA's payload, of which
// at least as many have to be left.
func (d *Decoder) ReadPayload(p []byte) error {
	if len(p) > d.left {
		return fmt.Errorf("read %d bytes of payload, of which %d are left", len(p), d.left)
	}
	d.left -= len(p)
	return d.full(p)
}

// ReadSome is ReadPayload for as many bytes, at least one, as one read of the
// stream gives; it says how many. p is not empty.
func (d *Decoder) ReadSome(p []byte) (int, error) {
	if len(p) > d.left {
		return 0, fmt.Errorf("read %d bytes of payload, of which %d are left", len(p), d.left)
	}
	n, err := d.r.Read(p)
	d.left -= n
	switch {
	case n > 0:
		return n, nil
	case err == io.EOF:
		return 0, io.ErrUnexpectedEOF
	case err == nil:
		return 0, io.ErrNoProgress
	}
	return 0, err
}

// skip passes over payload that nobody has read.
func (d *Decoder) skip() error {
	if d.left == 0 {
		return nil
	}
	n, err := d.r.Discard(d.left)
	d.left -= n
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// Buffered is how many bytes are there to be read without waiting for the
// stream. A server that has read a HELLO may find requests behind it.
func (d *Decoder) Buffered() int { return d.r.Buffered() }
