package imgfile

import (
	"errors"
	"fmt"
)

// ErrDamaged is wrapped by every error that says that an image file is not
// what CRIU wrote: truncated, changed, or of another kind.
var ErrDamaged = errors.New("CRIU image damaged")

// A DamagedError says where a file is damaged. It wraps ErrDamaged and Err.
type DamagedError struct {
	File   string // its path, or its name where it was read from a stream
	Offset int64  // where the damaged part starts
	Err    error  // what is wrong
}

// Error names the file and the place in it.
func (e *DamagedError) Error() string {
	return fmt.Sprintf("%s at offset %d: %v", e.File, e.Offset, e.Err)
}

// Unwrap gives ErrDamaged and what is wrong.
func (e *DamagedError) Unwrap() []error { return []error{ErrDamaged, e.Err} }
