package wire

import (
	"encoding/binary"
	"fmt"
	"iter"
)

// A Code says what is wrong with a request, and so what a client does next.
type Code uint16

// The codes. A client takes one that it does not know for CodeFailed.
const (
	CodeMalformed   Code = 1  // the connection is closed after it
	CodeVersion     Code = 2  // the text names what the server speaks; the connection is closed after it
	CodeNoImage     Code = 3  // there is no image of that name, or no image is open under that number
	CodeNoObject    Code = 4  // the image has no such object
	CodeRange       Code = 5  // the object ends before the range does
	CodeLimit       Code = 6  // the request is beyond the server's Limits, or the image beyond what an OPENED can list
	CodeBusy        Code = 7  // the server has too much to do: another one, or later
	CodeFailed      Code = 8  // the server could not read the object: another server
	CodeChanged     Code = 9  // the object is not as it was when the image was opened: another server
	CodeCancelled   Code = 10 // as was asked for
	CodeGoaway      Code = 11 // the server is about to leave: another one
	CodeUnsupported Code = 12 // the server does not know the type of request
	CodeDamaged     Code = 13 // the directory holds no image that can be opened
)

// String is the code in words.
func (c Code) String() string {
	switch c {
	case CodeMalformed:
		return "malformed message"
	case CodeVersion:
		return "another version of the protocol"
	case CodeNoImage:
		return "no such image"
	case CodeNoObject:
		return "no such object"
	case CodeRange:
		return "beyond the object's end"
	case CodeLimit:
		return "beyond a limit"
	case CodeBusy:
		return "the server is busy"
	case CodeFailed:
		return "the server could not read it"
	case CodeChanged:
		return "changed under the server"
	case CodeCancelled:
		return "cancelled"
	case CodeGoaway:
		return "the server is leaving"
	case CodeUnsupported:
		return "not known to the server"
	case CodeDamaged:
		return "not a whole image"
	}
	return fmt.Sprintf("error %d", uint16(c))
}

// Word is the code as PROTOCOL.md has it, for labels of metrics.
func (c Code) Word() string {
	words := [...]string{
		CodeMalformed: "malformed", CodeVersion: "version", CodeNoImage: "no_image", CodeNoObject: "no_object",
		CodeRange: "range", CodeLimit: "limit", CodeBusy: "busy", CodeFailed: "failed", CodeChanged: "changed",
		CodeCancelled: "cancelled", CodeGoaway: "goaway", CodeUnsupported: "unsupported", CodeDamaged: "damaged",
	}
	if int(c) < len(words) && words[c] != "" {
		return words[c]
	}
	return fmt.Sprint(uint16(c))
}

// Elsewhere reports whether another server may well answer the same request,
// or this one later.
func (c Code) Elsewhere() bool {
	switch c {
	case CodeMalformed, CodeVersion, CodeRange, CodeLimit, CodeCancelled, CodeUnsupported:
		return false
	case CodeNoImage, CodeNoObject, CodeBusy, CodeFailed, CodeChanged, CodeGoaway, CodeDamaged:
		return true
	}
	return true
}

// An Error is the reply to a request that is not fulfilled; of id 0 it is about
// the connection.
type Error struct {
	Code   Code
	Text   string // for people, at most MaxText bytes
	Fields Fields
}

// Error is the code and the text.
func (e *Error) Error() string {
	if e.Text == "" {
		return e.Code.String()
	}
	return e.Code.String() + ": " + e.Text
}

// Append appends the message.
func (e *Error) Append(dst []byte, id uint32) []byte {
	start := len(dst)
	dst = appendHeader(dst, TypeError, 0, id)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(e.Code))
	dst = appendText(dst, e.Text)
	dst = append(dst, e.Fields...)
	return finish(dst, start, 0)
}

// ParseError takes the body of an ERROR apart.
func ParseError(body []byte) (*Error, error) {
	p := parser{b: body}
	e := &Error{Code: Code(p.u16("the code")), Text: p.text("the text"), Fields: p.fields()}
	return e, p.err
}

// AppendDone appends a DONE.
func AppendDone(dst []byte, id uint32) []byte {
	start := len(dst)
	return finish(appendHeader(dst, TypeDone, 0, id), start, 0)
}

// An Opened says what the image holds. For as long as it is open on the
// connection it stays what it is.
type Opened struct {
	Image   uint32
	Digest  [32]byte // SHA-256 of manifest.json
	Objects []Object // ascending by name
	Fields  Fields
}

// An Object is a file of an image.
type Object struct {
	Name string
	Size int64 // bytes
}

// OpenedBytes is how long the body of an OPENED is, without fields, whose objects have these
// names. An image is not to be served where that is more than MaxReply.
func OpenedBytes(names iter.Seq[string]) int {
	n := 4 + 32 + 2 // the image, the digest, the number of objects
	for name := range names {
		n += 8 + 1 + len(name)
	}
	return n
}

// Append appends the message.
func (o *Opened) Append(dst []byte, id uint32) []byte {
	start := len(dst)
	dst = appendHeader(dst, TypeOpened, 0, id)
	dst = binary.LittleEndian.AppendUint32(dst, o.Image)
	dst = append(dst, o.Digest[:]...)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(o.Objects)))
	for _, object := range o.Objects {
		dst = binary.LittleEndian.AppendUint64(dst, uint64(object.Size))
		dst = appendName(dst, object.Name)
	}
	dst = append(dst, o.Fields...)
	return finish(dst, start, 0)
}

// ParseOpened takes the body of an OPENED apart.
func ParseOpened(body []byte) (*Opened, error) {
	p := parser{b: body}
	o := &Opened{Image: p.u32("the image")}
	copy(o.Digest[:], p.take(len(o.Digest), "the digest"))
	for range p.u16("the number of objects") {
		if p.err != nil {
			break
		}
		o.Objects = append(o.Objects, Object{Size: p.offset("a size"), Name: p.name(MaxObject, "an object")})
	}
	o.Fields = p.fields()
	return o, p.err
}

// A Listed has some of the server's images; FlagLast says that there are no
// more.
type Listed struct {
	Images []Image // ascending by name
	Fields Fields
}

// An Image is one that a server has.
type Image struct {
	Name   string
	Size   int64    // bytes of all its objects
	Digest [32]byte // SHA-256 of manifest.json
}

// Append appends the message.
func (l *Listed) Append(dst []byte, id uint32, flags uint8) []byte {
	start := len(dst)
	dst = appendHeader(dst, TypeListed, flags, id)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(l.Images)))
	for _, im := range l.Images {
		dst = binary.LittleEndian.AppendUint64(dst, uint64(im.Size))
		dst = append(dst, im.Digest[:]...)
		dst = appendName(dst, im.Name)
	}
	dst = append(dst, l.Fields...)
	return finish(dst, start, 0)
}

// ParseListed takes the body of a LISTED apart.
func ParseListed(body []byte) (*Listed, error) {
	p := parser{b: body}
	l := new(Listed)
	for range p.u16("the number of images") {
		if p.err != nil {
			break
		}
		im := Image{Size: p.offset("a size")}
		copy(im.Digest[:], p.take(len(im.Digest), "a digest"))
		im.Name = p.name(MaxName, "a name")
		l.Images = append(l.Images, im)
	}
	l.Fields = p.fields()
	return l, p.err
}

// AppendGoaway appends a GOAWAY; why is for people.
func AppendGoaway(dst []byte, why string) []byte {
	start := len(dst)
	dst = appendHeader(dst, TypeGoaway, 0, 0)
	dst = appendText(dst, why)
	return finish(dst, start, 0)
}

// ParseGoaway takes the body of a GOAWAY apart.
func ParseGoaway(body []byte) (why string, err error) {
	p := parser{b: body}
	why = p.text("the reason")
	p.fields()
	return why, p.err
}

// Data is what a DATA says of its payload.
type Data struct {
	Offset int64 // of the payload in the object
	Size   int64 // of the whole object
	Length int   // of the payload, at most MaxData
}

// AppendData appends a DATA but for its payload, which the sender puts behind
// it: d.Length bytes.
func AppendData(dst []byte, id uint32, flags uint8, d Data) []byte {
	start := len(dst)
	dst = appendHeader(dst, TypeData, flags, id)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(d.Offset))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(d.Size))
	return finish(dst, start, d.Length)
}
