package wire

import (
	"encoding/binary"
	"strings"
)

// A parser takes a body apart from its front. The first mistake stays.
type parser struct {
	b   []byte
	err error
}

// take is the next n bytes, or zeros after a mistake.
func (p *parser) take(n int, what string) []byte {
	if p.err == nil && len(p.b) < n {
		p.err = malformed("it ends within %s", what)
	}
	if p.err != nil {
		return make([]byte, n)
	}
	b := p.b[:n]
	p.b = p.b[n:]
	return b
}

func (p *parser) u8(what string) int { return int(p.take(1, what)[0]) }

func (p *parser) u16(what string) uint16 { return binary.LittleEndian.Uint16(p.take(2, what)) }

func (p *parser) u32(what string) uint32 { return binary.LittleEndian.Uint32(p.take(4, what)) }

func (p *parser) u64(what string) uint64 { return binary.LittleEndian.Uint64(p.take(8, what)) }

// offset is a u64 that is no negative int64.
func (p *parser) offset(what string) int64 {
	v := p.u64(what)
	if p.err == nil && v > 1<<63-1 {
		p.err = malformed("%s %#x", what, v)
	}
	return int64(v)
}

// name is a u8 length and as many bytes, at most max.
func (p *parser) name(limit int, what string) string {
	n := p.u8(what)
	if p.err == nil && n > limit {
		p.err = malformed("%s of %d bytes, at most %d are allowed", what, n, limit)
	}
	if p.err != nil {
		return ""
	}
	return string(p.take(n, what))
}

// text is a u16 length and as many bytes, at most MaxText.
func (p *parser) text(what string) string {
	n := int(p.u16(what))
	if p.err == nil && n > MaxText {
		p.err = malformed("%s of %d bytes, at most %d are allowed", what, n, MaxText)
	}
	if p.err != nil {
		return ""
	}
	return string(p.take(n, what))
}

// fields is all that is left.
func (p *parser) fields() Fields {
	if p.err != nil {
		return nil
	}
	f, err := parseFields(p.b)
	p.err = err
	return f
}

// appendName appends what name reads. Senders keep the limits.
func appendName(dst []byte, s string) []byte {
	s = s[:min(len(s), 255)]
	return append(append(dst, byte(len(s))), s...)
}

// appendText appends what text reads, cut at MaxText.
func appendText(dst []byte, s string) []byte {
	if len(s) > MaxText {
		s = strings.ToValidUTF8(s[:MaxText], "")
	}
	return append(binary.LittleEndian.AppendUint16(dst, uint16(len(s))), s...)
}
