// Package convert makes an image of ours of a CRIU image set, and the set
// again of the image.
//
// The image holds all files of the set as objects, so that CRIU restores from
// its directory. What is different is memory: lazy pages are in the image's
// frames (imgfile.ImageAddr says where), its pages files hold only the others,
// and its pagemaps say of the lazy ones no longer that they are present. CRIU
// leaves such a set itself where it dumps lazily, and takes it with --lazy-pages.
//
// A set comes back to the byte. One that builds on others becomes one that
// stands alone, with the pages that were in those.
//
// Files that every restore needs are looked through (imgfile.Dir.Check), so that a set
// of which one was cut within a record is refused. CRIU's files have no checksums: a changed byte
// may pass, as it does with CRIU.
//
// Everything is streamed: what is held is a few MiB and a pagemap, whatever the
// size of the set.
package convert

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
)

// ErrUnfit is wrapped by the error for a set, or an image, that cannot be
// converted though nothing about it is damaged.
var ErrUnfit = errors.New("cannot be converted")

// pieceBytes is how much is read and written at a time.
const pieceBytes = 1 << 20

// flagsField is the number of the field with the flags, in the message of a
// pagemap's entry.
const flagsField = 4

// setPresent changes the flags of an encoded entry that has the flag Lazy: it
// is present, or it is not. Nothing else of the message changes, whatever
// fields a newer CRIU may have added: so a pagemap comes back to the byte.
func setPresent(record []byte, present bool) error {
	for off := 0; off < len(record); {
		number, kind, n := protowire.ConsumeTag(record[off:])
		if n < 0 {
			return protowire.ParseError(n)
		}
		off += n
		n = protowire.ConsumeFieldValue(number, kind, record[off:])
		if n < 0 {
			return protowire.ParseError(n)
		}
		if number == flagsField && kind == protowire.VarintType && record[off]&byte(imgfile.Lazy) != 0 {
			// The low seven bits are in the first byte.
			record[off] &^= byte(imgfile.Present)
			if present {
				record[off] |= byte(imgfile.Present)
			}
		}
		off += n
	}
	return nil
}

// unfit is an error that wraps ErrUnfit.
func unfit(name, format string, args ...any) error {
	return fmt.Errorf("%s: %w: %s", name, ErrUnfit, fmt.Sprintf(format, args...))
}
