package harness

import (
	"context"
	"errors"
	"io"
)

// Demo will be here.
func (e *Env) Demo(ctx context.Context, w io.Writer) error { return errors.New("none") }
