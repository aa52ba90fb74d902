package lazyrestore

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
)

// A liar is a source whose objects have few of the bytes that it says.
type liar struct{}

func (liar) Close() error                                { return nil }
func (liar) Size(context.Context, string) (int64, error) { return 1 << 50, nil }
func (liar) ReadRange(_ context.Context, _ string, p []byte, off int64, _ image.Lane) error {
	if off+int64(len(p)) > 20<<20 {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// What a source says of its objects costs no memory.
func TestSizesAreNotBelieved(t *testing.T) {
	r := &restorer{src: liar{}, opts: new(RestoreOptions)}
	if err := r.open(t.Context()); !errors.Is(err, image.ErrDamaged) {
		t.Errorf("open = %v, want damage", err)
	}
	if _, err := objectFile(t.Context(), liar{}, image.EagerObject); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("objectFile = %v, want ErrUnexpectedEOF", err)
	}
}
