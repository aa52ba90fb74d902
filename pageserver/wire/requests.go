package wire

import "encoding/binary"

// An Open asks for an image. The client chooses the number that later requests
// on this connection call it by, and may send them without waiting for the
// OPENED.
type Open struct {
	Image  uint32 // a number that no open image of the connection has
	Name   string // at most MaxName bytes
	Fields Fields // TagDigest
}

// Append appends the message.
func (o Open) Append(dst []byte, id uint32) []byte {
	start := len(dst)
	dst = appendHeader(dst, TypeOpen, 0, id)
	dst = binary.LittleEndian.AppendUint32(dst, o.Image)
	dst = appendName(dst, o.Name)
	dst = append(dst, o.Fields...)
	return finish(dst, start, 0)
}

// ParseOpen takes the body of an OPEN apart.
func ParseOpen(body []byte) (Open, error) {
	p := parser{b: body}
	o := Open{Image: p.u32("the image"), Name: p.name(MaxName, "the name"), Fields: p.fields()}
	return o, p.err
}

// A Read asks for a range of an object. Its flags are in the header:
// FlagBackground, FlagShort, FlagFromEnd.
type Read struct {
	Image  uint32
	Length uint32 // bytes, at most Limits.Read
	Offset int64  // with FlagFromEnd: bytes before the object's end, but not before its begin
	Object string // at most MaxObject bytes
	Fields Fields
}

// Append appends the message.
func (r Read) Append(dst []byte, id uint32, flags uint8) []byte {
	start := len(dst)
	dst = appendHeader(dst, TypeRead, flags, id)
	dst = binary.LittleEndian.AppendUint32(dst, r.Image)
	dst = binary.LittleEndian.AppendUint32(dst, r.Length)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(r.Offset))
	dst = appendName(dst, r.Object)
	dst = append(dst, r.Fields...)
	return finish(dst, start, 0)
}

// ParseRead takes the body of a READ apart.
func ParseRead(body []byte) (Read, error) {
	p := parser{b: body}
	r := Read{
		Image: p.u32("the image"), Length: p.u32("the length"), Offset: p.offset("the offset"),
		Object: p.name(MaxObject, "the object"), Fields: p.fields(),
	}
	return r, p.err
}

// AppendClose appends a CLOSE: requests for the image that are in flight are
// answered, later ones are not.
func AppendClose(dst []byte, id, image uint32) []byte {
	start := len(dst)
	dst = appendHeader(dst, TypeClose, 0, id)
	dst = binary.LittleEndian.AppendUint32(dst, image)
	return finish(dst, start, 0)
}

// ParseClose takes the body of a CLOSE apart.
func ParseClose(body []byte) (image uint32, err error) {
	p := parser{b: body}
	image = p.u32("the image")
	p.fields()
	return image, p.err
}

// A List asks for the images whose names sort after a name.
type List struct {
	After  string // "" for all
	Fields Fields
}

// Append appends the message.
func (l List) Append(dst []byte, id uint32) []byte {
	start := len(dst)
	dst = appendHeader(dst, TypeList, 0, id)
	dst = appendName(dst, l.After)
	dst = append(dst, l.Fields...)
	return finish(dst, start, 0)
}

// ParseList takes the body of a LIST apart.
func ParseList(body []byte) (List, error) {
	p := parser{b: body}
	l := List{After: p.name(MaxName, "the name"), Fields: p.fields()}
	return l, p.err
}

// AppendPing appends a PING.
func AppendPing(dst []byte, id uint32) []byte {
	start := len(dst)
	return finish(appendHeader(dst, TypePing, 0, id), start, 0)
}

// AppendCancel appends a CANCEL of the request id.
func AppendCancel(dst []byte, id uint32) []byte {
	start := len(dst)
	return finish(appendHeader(dst, TypeCancel, 0, id), start, 0)
}
