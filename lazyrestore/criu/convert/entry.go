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
