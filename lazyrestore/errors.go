package lazyrestore

import (
	"errors"

	"github.com/lazyrestore/lazyrestore/lazyrestore/native"
)

// ErrSourceLost says that the place where pages come from cannot be reached, or no
// longer answers.
var ErrSourceLost = errors.New("the page source is lost")

// A Reason is one thing that stands against a checkpoint or a restore.
type Reason = native.Reason

// RefusedError says that an image cannot hold the process, or that this place
// cannot take it, and that nothing was changed. It has every reason found, not
// only the first.
type RefusedError = native.RefusedError

// FacilityError says that this machine, or this user on it, lacks something
// that the work needs.
type FacilityError struct {
	Facility string // what is missing: "userfaultfd", "CAP_SYS_PTRACE"
	Hint     string // what to do about it
	Err      error  // what the kernel said, if it was asked
}

func (e *FacilityError) Error() string {
	if e.Err != nil {
		return e.Facility + " is not available: " + e.Err.Error()
	}
	return e.Facility + " is not available"
}

// Unwrap gives what the kernel said.
func (e *FacilityError) Unwrap() error { return e.Err }
