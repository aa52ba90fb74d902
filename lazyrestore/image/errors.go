package image

import (
	"errors"
	"fmt"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// ErrDamaged is wrapped by every error that says that an image is not what
// its writer wrote: truncated, changed, mixed with another, or not the one
// whose digest was asked for.
var ErrDamaged = errors.New("image damaged")

// ErrVersion is wrapped by the error for an image in a format that this
// program is too old for.
var ErrVersion = errors.New("image format not supported")

// NoFrame is the Frame of a DamagedError that is not about one.
const NoFrame = -1

// A DamagedError says where an image is damaged. It wraps ErrDamaged and Err.
type DamagedError struct {
	Object string     // the object's name
	Offset int64      // in the object, where the damaged part starts
	Frame  int        // of the pages object, or NoFrame
	Range  page.Range // of image addresses that cannot be had; empty where that is not known
	Err    error      // what is wrong
	Again  bool       // the source was told, and may give other bytes to the next read (Rejecter)
}

// Error names the object and the place in it.
func (e *DamagedError) Error() string {
	if e.Frame == NoFrame {
		return fmt.Sprintf("%s at offset %d: %v", e.Object, e.Offset, e.Err)
	}
	s := fmt.Sprintf("frame %d of %s (offset %d", e.Frame, e.Object, e.Offset)
	if !e.Range.Empty() {
		s += ", memory " + e.Range.String()
	}
	return s + "): " + e.Err.Error()
}

// Unwrap gives ErrDamaged and what is wrong.
func (e *DamagedError) Unwrap() []error { return []error{ErrDamaged, e.Err} }

// damaged is a DamagedError about an object as a whole, or a part that is not
// a frame.
func damaged(object string, off int64, format string, args ...any) error {
	return &DamagedError{Object: object, Offset: off, Frame: NoFrame, Err: fmt.Errorf(format, args...)}
}
