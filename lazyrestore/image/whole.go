package image

import (
	"context"
	"slices"
)

const (
	// firstStep is how much of an object is asked for before any of it has come:
	// what restores wait for has mostly less, and comes at once.
	firstStep = 4 << 20
	lastStep  = 64 << 20
)

// ReadSteps reads the size bytes of object from off on in steps that grow, and
// calls f with each. The bytes last until f returns. That there are so many is
// what a source or an image says, and may be a lie: memory is taken as bytes come.
func ReadSteps(ctx context.Context, src Source, object string, off, size int64, f func(b []byte) error) error {
	var buf []byte
	for done := int64(0); done < size; done += int64(len(buf)) {
		n := min(max(done, firstStep), lastStep, size-done)
		buf = slices.Grow(buf[:0], int(n))[:n]
		if err := src.ReadRange(ctx, object, buf, off+done, Demand); err != nil {
			return err
		}
		if err := f(buf); err != nil {
			return err
		}
	}
	return nil
}

// ReadWhole reads the size bytes of object from off on. See ReadSteps for what
// is not believed of size.
func ReadWhole(ctx context.Context, src Source, object string, off, size int64) ([]byte, error) {
	if size <= firstStep {
		b := make([]byte, size)
		if size == 0 {
			return b, nil
		}
		return b, src.ReadRange(ctx, object, b, off, Demand)
	}
	var whole []byte
	err := ReadSteps(ctx, src, object, off, size, func(b []byte) error {
		whole = append(whole, b...)
		return nil
	})
	return whole, err
}
