package imgfile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"
)

// A Magic is the number that says what an image file holds.
type Magic uint32

// The numbers of the files that are about tasks and their memory (CRIU's
// include/magic.h). MagicCommon stands before all others, but for the
// inventory, which has its own alone.
const (
	MagicCommon    Magic = 0x54564319
	MagicInventory Magic = 0x58313116
	MagicPstree    Magic = 0x50273030
	MagicCore      Magic = 0x55053847
	MagicMM        Magic = 0x57492820
	MagicPagemap   Magic = 0x56084025
	MagicStats     Magic = 0x57093306
)

// MaxRecord is the longest record, in bytes, that is read. The longest that
// CRIU writes is the list of a task's VMAs, some sixty bytes for each.
const MaxRecord = 128 << 20

// A Reader reads the records of one image file.
type Reader struct {
	r    io.Reader
	name string
	off  int64
	buf  []byte
}

// NewReader reads the head of the file called name from r and checks that it
// is of the kind want, if that is not 0. It reads r in small pieces.
func NewReader(r io.Reader, name string, want Magic) (*Reader, error) {
	rd := &Reader{r: r, name: name}
	magic, err := rd.uint32()
	if err == nil && magic == uint32(MagicCommon) && want != MagicInventory {
		magic, err = rd.uint32()
	}
	switch {
	case errors.Is(err, io.EOF):
		return nil, rd.damaged(io.ErrUnexpectedEOF)
	case err != nil:
		return nil, err
	case Magic(magic) != want && want != 0:
		return nil, &DamagedError{File: name, Err: fmt.Errorf("magic number %#x, not %#x: not this kind of image file", magic, uint32(want))}
	}
	return rd, nil
}

// damaged says that the file is wrong where the reader is.
func (r *Reader) damaged(err error) error {
	return &DamagedError{File: r.name, Offset: r.off, Err: err}
}

// uint32 reads a number; io.EOF if there is not a byte of it.
func (r *Reader) uint32() (uint32, error) {
	var b [4]byte
	n, err := io.ReadFull(r.r, b[:])
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return 0, r.damaged(err)
	}
	r.off += int64(n)
	return binary.LittleEndian.Uint32(b[:]), err
}

// Next is the bytes of the next record, which last until the next call, or
// io.EOF at the end of the file. Memory is taken only for what is there.
func (r *Reader) Next() ([]byte, error) {
	n, err := r.uint32()
	if err != nil {
		return nil, err
	}
	if n > MaxRecord {
		return nil, r.damaged(fmt.Errorf("a record of %d bytes; at most %d are read", n, MaxRecord))
	}
	r.buf = r.buf[:0]
	for len(r.buf) < int(n) {
		// In steps, so that a length that lies costs no memory.
		step := min(int(n)-len(r.buf), max(64<<10, len(r.buf)))
		at := len(r.buf)
		r.buf = append(r.buf, make([]byte, step)...)
		if _, err := io.ReadFull(r.r, r.buf[at:]); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, r.damaged(io.ErrUnexpectedEOF)
		} else if err != nil {
			return nil, err
		}
	}
	r.off += int64(n)
	return r.buf, nil
}

// Decode reads the next record into m, or gives io.EOF at the end of the file.
func (r *Reader) Decode(m proto.Message) error {
	at := r.off
	b, err := r.Next()
	if err != nil {
		return err
	}
	if err := proto.Unmarshal(b, m); err != nil {
		return &DamagedError{File: r.name, Offset: at, Err: err}
	}
	return nil
}

// A Writer writes the records of one image file.
type Writer struct {
	w   io.Writer
	buf []byte
}

// NewWriter writes the head of a file of the kind magic to w.
func NewWriter(w io.Writer, magic Magic) (*Writer, error) {
	var head []byte
	if magic != MagicInventory {
		head = binary.LittleEndian.AppendUint32(head, uint32(MagicCommon))
	}
	head = binary.LittleEndian.AppendUint32(head, uint32(magic))
	_, err := w.Write(head)
	return &Writer{w: w}, err
}

// Encode writes m as the next record, with one call of Write.
func (w *Writer) Encode(m proto.Message) error {
	b, err := proto.MarshalOptions{}.MarshalAppend(append(w.buf[:0], 0, 0, 0, 0), m)
	if err != nil {
		return err
	}
	w.buf = b
	if len(b)-4 > MaxRecord {
		return fmt.Errorf("a record of %d bytes; at most %d are written", len(b)-4, MaxRecord)
	}
	binary.LittleEndian.PutUint32(b, uint32(len(b)-4))
	_, err = w.w.Write(b)
	return err
}
