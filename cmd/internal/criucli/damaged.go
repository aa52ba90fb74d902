package criucli

import (
	"errors"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
)

// Damaged makes an error about a damaged set one of the exit code for damage.
func Damaged(err error) error {
	if errors.Is(err, imgfile.ErrDamaged) {
		return damagedError{err}
	}
	return err
}

type damagedError struct{ error }

func (e damagedError) Unwrap() []error { return []error{image.ErrDamaged, e.error} }
