package verb

import (
	"errors"

	"github.com/lazyrestore/lazyrestore/cmd/internal/cli"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
)

type digestValue struct{ p *string }

// Digest is a flag that names an image by its digest, as checkpoint printed it.
func Digest(p *string) cli.Value { return digestValue{p} }

func (v digestValue) String() string { return *v.p }

func (v digestValue) Set(s string) error {
	digest, err := image.ParseDigest(s)
	if err != nil {
		return errors.New("a digest is 64 hex digits, with sha256: before them, as checkpoint and inspect print it, or without")
	}
	*v.p = digest
	return nil
}
