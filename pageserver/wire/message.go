package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"sync"
)

// Version is the version of the protocol that this package speaks.
const Version = 1

// Magic begins the body of HELLO.
const Magic = "lzrpages"

// DefaultPort is where a server listens, and where a client looks for one,
// unless told otherwise.
const DefaultPort = 7480

// Lengths in bytes and counts that hold whatever the peers agree on.
const (
	HeaderSize = 16
	DataSize   = 16 // what is in a DATA before its payload: offset and object size

	MaxRequest = 4 << 10  // body of HELLO and of every request
	MaxReply   = 64 << 10 // body of every reply but DATA
	MaxData    = 1 << 20  // payload of one DATA
	MaxName    = 255      // of an image
	MaxObject  = 64       // name of an object
	MaxText    = 1 << 10  // of an error or a farewell

	// What every server grants, so that a client need not wait for its HELLO.
	MinRead     = 1 << 20 // length of one READ
	MinRequests = 16      // requests in flight
	MinImages   = 4       // images open at once
)

// A Type says what a message is.
type Type uint8

// The types. Requests are below 0x80, replies from there on; HELLO goes both
// ways.
const (
	TypeHello  Type = 0x01
	TypeOpen   Type = 0x02 // open an image under a number that the client chooses
	TypeRead   Type = 0x03 // a range of an object
	TypeClose  Type = 0x04 // let an image go
	TypeList   Type = 0x05 // what images there are
	TypePing   Type = 0x06 // nothing but a DONE
	TypeCancel Type = 0x07 // the request of that id is no longer wanted; has no reply of its own

	TypeDone   Type = 0x80 // to CLOSE and PING
	TypeError  Type = 0x81 // to any request
	TypeOpened Type = 0x82 // to OPEN
	TypeData   Type = 0x83 // to READ, one or several
	TypeListed Type = 0x84 // to LIST, one or several
	TypeGoaway Type = 0x85 // to no request: the server is about to leave
)

// String is the name of the type as PROTOCOL.md has it.
func (t Type) String() string {
	switch t {
	case TypeHello:
		return "HELLO"
	case TypeOpen:
		return "OPEN"
	case TypeRead:
		return "READ"
	case TypeClose:
		return "CLOSE"
	case TypeList:
		return "LIST"
	case TypePing:
		return "PING"
	case TypeCancel:
		return "CANCEL"
	case TypeDone:
		return "DONE"
	case TypeError:
		return "ERROR"
	case TypeOpened:
		return "OPENED"
	case TypeData:
		return "DATA"
	case TypeListed:
		return "LISTED"
	case TypeGoaway:
		return "GOAWAY"
	}
	return fmt.Sprintf("type %#02x", uint8(t))
}

// Flags of a header.
const (
	FlagLast uint8 = 1 << 0 // DATA, LISTED: nothing more follows for this request

	FlagBackground uint8 = 1 << 0 // READ: nobody waits for it yet
	FlagShort      uint8 = 1 << 1 // READ: the object may end before the range does
	FlagFromEnd    uint8 = 1 << 2 // READ: the offset counts back from the object's end
)

// A Header begins each message.
type Header struct {
	Length uint32 // of the body
	Type   Type
	Flags  uint8
	ID     uint32 // of the request; 0 is the connection itself
}

// ErrMalformed is every way in which bytes are not a message: after it the
// stream is of no use.
var ErrMalformed = errors.New("malformed message")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrMalformed, fmt.Errorf(format, args...))
}

// castagnoli is made with the first checksum, not when the program starts.
var castagnoli = sync.OnceValue(func() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) })

// appendHeader appends a header that finish completes.
func appendHeader(dst []byte, t Type, flags uint8, id uint32) []byte {
	dst = append(dst, 0, 0, 0, 0, byte(t), flags, 0, 0)
	dst = binary.LittleEndian.AppendUint32(dst, id)
	return append(dst, 0, 0, 0, 0)
}

// finish puts length and checksum into the message that begins at start.
// payload is the length of what the sender puts behind it.
func finish(dst []byte, start, payload int) []byte {
	m := dst[start:]
	binary.LittleEndian.PutUint32(m, uint32(len(m)-HeaderSize+payload))
	binary.LittleEndian.PutUint32(m[12:], checksum(m[:12], m[HeaderSize:]))
	return dst
}

// Seal makes length and checksum of a message right whose header or body has
// been changed. It is for tests of what another version might say.
func Seal(message []byte) []byte { return finish(message, 0, 0) }

// checksum is the CRC-32C of a header, without the checksum in it, and of the
// body as far as it is covered.
func checksum(header, body []byte) uint32 {
	return crc32.Update(crc32.Checksum(header, castagnoli()), castagnoli(), body)
}

// parseHeader takes a header apart; its checksum has to wait for the body.
func parseHeader(b *[HeaderSize]byte) (Header, error) {
	h := Header{
		Length: binary.LittleEndian.Uint32(b[0:]),
		Type:   Type(b[4]),
		Flags:  b[5],
		ID:     binary.LittleEndian.Uint32(b[8:]),
	}
	if b[6] != 0 || b[7] != 0 {
		return h, malformed("bytes 6 and 7 of a header are %#02x %#02x, not zero", b[6], b[7])
	}
	return h, nil
}
