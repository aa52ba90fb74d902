package pagexfer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// ErrProtocol is wrapped by every error about what a peer said.
var ErrProtocol = errors.New("page transfer protocol")

// A Dialect is a form of the header.
type Dialect uint8

// The dialects, named by the versions of CRIU that speak them.
const (
	V41 Dialect = iota // up to CRIU 4.1: 24 bytes, 32 bits for the number of pages
	V42                // from CRIU 4.2 on: 32 bytes, 64 bits for the number of pages
)

// String is the dialect's name, as ParseDialect reads it.
func (d Dialect) String() string {
	if d == V42 {
		return "4.2"
	}
	return "4.1"
}

// ParseDialect reads the name of a dialect: "4.1" or "4.2".
func ParseDialect(s string) (Dialect, error) {
	for _, d := range []Dialect{V41, V42} {
		if s == d.String() {
			return d, nil
		}
	}
	return 0, fmt.Errorf("dialect %q: there are 4.1, of CRIU up to 4.1, and 4.2, of CRIU from 4.2 on", s)
}

// HeaderSize is the length of a header in bytes.
func (d Dialect) HeaderSize() int {
	if d == V42 {
		return maxHeader
	}
	return minHeader
}

const (
	minHeader = 24
	maxHeader = 32
)

// A Command says what a header means.
type Command uint16

// The commands.
const (
	Add        Command = 1      // before there were flags: AddF with Present
	Hole       Command = 2      // the same: AddF with Parent
	Open       Command = 3      // Open2 without a reply
	Open2      Command = 4      // start an image; the reply is one byte, 1 if there is a parent
	Parent     Command = 5      // is there a parent for this image? The reply is an int32
	AddF       Command = 6      // a run of pages, which follow if Flags has Present
	Get        Command = 7      // ask for pages; ID is the bare pid
	Close      Command = 0x1023 // the end; the reply is an int32
	ForceClose Command = 0x1024 // the same, of a client that cannot close its connection
)

// String is CRIU's name of the command.
func (c Command) String() string {
	switch c {
	case Add:
		return "ADD"
	case Hole:
		return "HOLE"
	case Open:
		return "OPEN"
	case Open2:
		return "OPEN2"
	case Parent:
		return "PARENT"
	case AddF:
		return "ADD_F"
	case Get:
		return "GET"
	case Close:
		return "CLOSE"
	case ForceClose:
		return "FORCE_CLOSE"
	}
	return fmt.Sprintf("command %#x", uint16(c))
}

// Flags say what is known of a run of pages; they are also those of CRIU's
// pagemap images.
type Flags uint16

// The flags.
const (
	InParent Flags = 1 // the parent image has the pages
	Lazy     Flags = 2 // the pages may come after the process has started
	Present  Flags = 4 // the pages follow, or are in the pages image
)

// String is the flags as CRIU names them, each behind a bar.
func (f Flags) String() string {
	var b strings.Builder
	for _, n := range []struct {
		flag Flags
		name string
	}{{InParent, "|PARENT"}, {Lazy, "|LAZY"}, {Present, "|PRESENT"}} {
		if f&n.flag != 0 {
			b.WriteString(n.name)
			f &^= n.flag
		}
	}
	if f != 0 {
		fmt.Fprintf(&b, "|%#x", uint16(f))
	}
	return b.String()
}

// A Header is one message, without the pages that may follow it.
type Header struct {
	Command Command
	Flags   Flags
	Pages   uint64    // how many
	Addr    page.Addr // of the first of them
	ID      uint64    // of the image: ImageID, or for Get the bare pid
}

// String is the header for people.
func (h Header) String() string {
	return fmt.Sprintf("%s%s pages=%d addr=%s id=%#x", h.Command, h.Flags, h.Pages, h.Addr, h.ID)
}

// Follows is the number of bytes that follow the header.
func (h Header) Follows() uint64 {
	if h.Command == Add || h.Command == AddF && h.Flags&Present != 0 {
		return h.Pages << page.Shift
	}
	return 0
}

// Range is the pages that the header is about.
func (h Header) Range() page.Range { return page.RangeOf(h.Addr, h.Pages<<page.Shift) }

// Kind is the kind of image that pages are sent to.
type Kind uint8

// The kinds.
const (
	Process Kind = 1 // the memory of a process; the number is its pid
	Shmem   Kind = 2 // a shared memory object; the number is CRIU's for it
)

// ImageID is the ID of an image in all commands but Get.
func ImageID(k Kind, number uint64) uint64 { return number<<8 | uint64(k) }

// Image takes an ID apart. The error, for a kind that is not known or a number
// that cannot be, wraps ErrProtocol.
func (h Header) Image() (Kind, uint64, error) {
	kind, number := Kind(h.ID), h.ID>>8
	switch {
	case kind == Process && number > 0 && number <= maxPID, kind == Shmem && number <= 1<<40:
		return kind, number, nil
	}
	return 0, 0, fmt.Errorf("%w: %s: id of no image", ErrProtocol, h)
}

const (
	maxPID  = 1<<31 - 1
	maxAddr = page.ImageShared // no user memory lies above it
)

var errWide = errors.New("more pages than fit into a header of CRIU up to 4.1")

// Append appends the header as the dialect has it. The error is for more than
// 2^32-1 pages in V41.
func (d Dialect) Append(dst []byte, h Header) ([]byte, error) {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(h.Flags)<<16|uint32(h.Command))
	if d == V42 {
		dst = append(dst, 0, 0, 0, 0)
		dst = binary.LittleEndian.AppendUint64(dst, h.Pages)
	} else {
		if h.Pages != uint64(uint32(h.Pages)) {
			return nil, fmt.Errorf("%s: %w", h, errWide)
		}
		dst = binary.LittleEndian.AppendUint32(dst, uint32(h.Pages))
	}
	dst = binary.LittleEndian.AppendUint64(dst, uint64(h.Addr))
	return binary.LittleEndian.AppendUint64(dst, h.ID), nil
}

// Parse reads a header from the first HeaderSize bytes of b, and checks what
// can be checked without knowing what came before. The error wraps ErrProtocol.
func (d Dialect) Parse(b []byte) (Header, error) {
	h := d.fields(b)
	return h, h.check()
}

// fields reads a header. The padding of V42 may hold anything.
func (d Dialect) fields(b []byte) Header {
	word := binary.LittleEndian.Uint32(b)
	h := Header{Command: Command(word), Flags: Flags(word >> 16)}
	if d == V42 {
		h.Pages, b = binary.LittleEndian.Uint64(b[8:]), b[16:maxHeader]
	} else {
		h.Pages, b = uint64(binary.LittleEndian.Uint32(b[4:])), b[8:minHeader]
	}
	h.Addr = page.Addr(binary.LittleEndian.Uint64(b))
	h.ID = binary.LittleEndian.Uint64(b[8:])
	return h
}

// check reports what no peer says.
func (h Header) check() error {
	switch h.Command {
	case Open, Open2, Parent, Close, ForceClose:
		return nil
	case Add, Hole, AddF, Get:
		if !h.Addr.Aligned() || h.Addr >= maxAddr || h.Pages == 0 || h.Pages > uint64(maxAddr-h.Addr)>>page.Shift {
			return fmt.Errorf("%w: %s: pages that no process has", ErrProtocol, h)
		}
		if h.Command == Get && h.ID > maxPID {
			return fmt.Errorf("%w: %s: not a pid", ErrProtocol, h)
		}
		return nil
	}
	return fmt.Errorf("%w: %s: not known", ErrProtocol, h.Command)
}
