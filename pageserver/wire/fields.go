package wire

import (
	"encoding/binary"
	"iter"
)

// Fields are what may follow the fixed part of a body: tag (u16), length
// (u16), value, any number of times. A receiver passes over tags that it does
// not know, so that a peer may say more than version 1 has words for. Fields
// that a Parse function returns are whole.
type Fields []byte

// Tags of fields. Those from 0x100 on are capabilities: a client offers them in
// its HELLO, and the server's HELLO has those that it grants.
const (
	TagAgent  Tag = 0x01 // HELLO: the program that speaks, as text
	TagDigest Tag = 0x02 // OPEN: the image that is wanted, by its digest of 32 bytes

	FirstCapability Tag = 0x100
)

// A Tag says what a field is.
type Tag uint16

// fieldHead is the length of tag and length.
const fieldHead = 4

// Append adds a field. The value is at most 65535 bytes long; what the whole
// message may hold is less.
func (f Fields) Append(tag Tag, value []byte) Fields {
	f = binary.LittleEndian.AppendUint16(f, uint16(tag))
	f = binary.LittleEndian.AppendUint16(f, uint16(len(value)))
	return append(f, value...)
}

// All are the fields, in order. The values are parts of f.
func (f Fields) All() iter.Seq2[Tag, []byte] {
	return func(yield func(Tag, []byte) bool) {
		for rest := f; len(rest) >= fieldHead; {
			tag, n := Tag(binary.LittleEndian.Uint16(rest)), int(binary.LittleEndian.Uint16(rest[2:]))
			if n > len(rest)-fieldHead || !yield(tag, rest[fieldHead:fieldHead+n]) {
				return
			}
			rest = rest[fieldHead+n:]
		}
	}
}

// Get is the first field of that tag.
func (f Fields) Get(tag Tag) (value []byte, ok bool) {
	for t, v := range f.All() {
		if t == tag {
			return v, true
		}
	}
	return nil, false
}

// parseFields checks that b is fields and nothing else.
func parseFields(b []byte) (Fields, error) {
	for rest := b; len(rest) > 0; {
		if len(rest) < fieldHead {
			return nil, malformed("%d bytes are too few for a field", len(rest))
		}
		n := int(binary.LittleEndian.Uint16(rest[2:]))
		if n > len(rest)-fieldHead {
			return nil, malformed("a field of %d bytes in the last %d", n, len(rest)-fieldHead)
		}
		rest = rest[fieldHead+n:]
	}
	if len(b) == 0 {
		return nil, nil
	}
	return Fields(b), nil
}
