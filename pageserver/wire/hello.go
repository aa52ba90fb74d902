package wire

import (
	"encoding/binary"
	"errors"
)

// A ClientHello is the first message of a connection. The client need not wait
// for the answer.
type ClientHello struct {
	Version uint16   // of all that the client sends
	Client  [16]byte // random; the same on all connections of one client
	Fields  Fields   // TagAgent, capabilities offered
}

// A ServerHello answers it.
type ServerHello struct {
	Version  uint16   // the client's
	Server   [16]byte // random; a server that was started anew has another
	Limits   Limits
	IdleTime uint32 // milliseconds of silence after which the server hangs up
	Fields   Fields // TagAgent, capabilities granted
}

// Limits are what a server grants each connection; never less than MinRead,
// MinRequests and MinImages.
type Limits struct {
	Read     uint32 // length of one READ
	Requests uint32 // requests in flight
	Images   uint32 // images open at once
}

// ErrVersion is a HELLO of another version than Version. What is after the
// version is not looked at.
var ErrVersion = errors.New("another version of the protocol")

// Append appends the message.
func (h ClientHello) Append(dst []byte) []byte {
	start := len(dst)
	dst = appendHeader(dst, TypeHello, 0, 0)
	dst = append(dst, Magic...)
	dst = binary.LittleEndian.AppendUint16(dst, h.Version)
	dst = append(dst, 0, 0)
	dst = append(dst, h.Client[:]...)
	dst = append(dst, h.Fields...)
	return finish(dst, start, 0)
}

// Append appends the message.
func (h ServerHello) Append(dst []byte) []byte {
	start := len(dst)
	dst = appendHeader(dst, TypeHello, 0, 0)
	dst = append(dst, Magic...)
	dst = binary.LittleEndian.AppendUint16(dst, h.Version)
	dst = append(dst, 0, 0)
	dst = append(dst, h.Server[:]...)
	for _, v := range []uint32{h.Limits.Read, h.Limits.Requests, h.Limits.Images, h.IdleTime} {
		dst = binary.LittleEndian.AppendUint32(dst, v)
	}
	dst = append(dst, h.Fields...)
	return finish(dst, start, 0)
}

// head reads what begins both HELLOs in every version.
func (p *parser) head() (version uint16) {
	if magic := p.take(len(Magic), "the magic number"); p.err == nil && string(magic) != Magic {
		p.err = malformed("a HELLO that begins with %q, not %q", magic, Magic)
	}
	version = p.u16("the version")
	if p.err == nil && version != Version {
		p.err = ErrVersion
	}
	if reserved := p.u16("the reserved bytes"); p.err == nil && reserved != 0 {
		p.err = malformed("reserved bytes of a HELLO are %#x, not zero", reserved)
	}
	return version
}

// ParseClientHello takes the body of a client's HELLO apart. After an
// ErrVersion the Version is all that is known.
func ParseClientHello(body []byte) (ClientHello, error) {
	p := parser{b: body}
	h := ClientHello{Version: p.head()}
	copy(h.Client[:], p.take(16, "the client's id"))
	h.Fields = p.fields()
	return h, p.err
}

// ParseServerHello takes the body of a server's HELLO apart. Limits that are
// lower than a server may have are malformed.
func ParseServerHello(body []byte) (ServerHello, error) {
	p := parser{b: body}
	h := ServerHello{Version: p.head()}
	copy(h.Server[:], p.take(16, "the server's id"))
	h.Limits = Limits{Read: p.u32("a limit"), Requests: p.u32("a limit"), Images: p.u32("a limit")}
	h.IdleTime = p.u32("the idle time")
	h.Fields = p.fields()
	if l := h.Limits; p.err == nil && (l.Read < MinRead || l.Requests < MinRequests || l.Images < MinImages) {
		p.err = malformed("limits %+v are lower than a server may have", l)
	}
	return h, p.err
}
