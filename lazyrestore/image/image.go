package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
)

// OpenOptions are for Open; the zero value opens any image.
type OpenOptions struct {
	// Digest is the digest that the image must have, as ParseDigest reads it.
	// With it, every byte that the image hands out is checked by SHA-256 all
	// the way up to that digest; without it, by checksums that find damage.
	Digest string
}

// An Image is an open image. It never changes, and its methods may be called
// concurrently. The Source stays the caller's, who closes it.
type Image struct {
	src      Source
	manifest *Manifest
	digest   string
	pinned   bool
	codec    chunk.Codec
	pages    string // the pages object's name
	plain    *Index // of a plain image, which has no manifest
}

var (
	errNoObject  = errors.New("the image has no such object")
	errShort     = errors.New("shorter than it should be")
	errWrongSum  = errors.New("SHA-256 mismatch")
	errNotPinned = errors.New("not the image whose digest was asked for")
)

// Open reads and checks the image's manifest, and nothing else. Errors are
// ErrDamaged, ErrVersion, or the source's own.
func Open(ctx context.Context, src Source, opts OpenOptions) (*Image, error) {
	im := &Image{src: src}
	var want string
	if opts.Digest != "" {
		var err error
		if want, err = ParseDigest(opts.Digest); err != nil {
			return nil, err
		}
	}
	b, err := im.readManifest(ctx)
	if err != nil {
		return nil, err
	}
	if want != "" {
		if want != im.digest {
			return nil, damaged(ManifestObject, 0, "%w: it is %s, not %s", errNotPinned, im.digest, want)
		}
		im.pinned = true
	}
	if im.manifest, err = ParseManifest(b); err != nil {
		return nil, err
	}
	im.codec, _ = chunk.ParseCodec(im.manifest.Codec) // ParseManifest knows it
	im.pages = PagesObject(im.codec)
	return im, nil
}

const (
	// manifestTries is how often a manifest is read that is not the one of which the
	// source has the digest, manifestPause how long after the first time.
	manifestTries = 4
	manifestPause = 25 * time.Millisecond
)

// readManifest reads the manifest, which is the one that the source has if that knows
// it, and notes its digest.
func (im *Image) readManifest(ctx context.Context) ([]byte, error) {
	for try := 0; ; try++ {
		b, err := readManifest(ctx, im.src)
		if err != nil {
			return nil, err
		}
		im.digest = digestOf(b)
		said, ok := im.src.(Digester)
		if !ok || said.Digest() == "" || said.Digest() == im.digest {
			return b, nil
		}
		err = damaged(ManifestObject, 0, "%w: it is %s, and the source has %s", errWrongSum, im.digest, said.Digest())
		im.reject(ManifestObject, 0, int64(len(b)), err)
		if try == manifestTries-1 {
			return nil, err
		}
		select {
		case <-time.After(manifestPause << try):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func readManifest(ctx context.Context, src Source) ([]byte, error) {
	size, err := src.Size(ctx, ManifestObject)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, damaged(ManifestObject, 0, "%w: this is not an image, or not a whole one", err)
	}
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	if size > MaxManifest {
		return nil, damaged(ManifestObject, 0, "%d bytes are too many for a manifest", size)
	}
	b := make([]byte, size)
	if err := src.ReadRange(ctx, ManifestObject, b, 0, Demand); err != nil {
		return nil, readError(ManifestObject, 0, err)
	}
	return b, nil
}

// readError is the error of a failed read: damage where the object is too
// short, else the source's own.
func readError(object string, off int64, err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return damaged(object, off, "%w", errShort)
	}
	return fmt.Errorf("read %s at offset %d: %w", object, off, err)
}

// Manifest is the image's manifest, not to be changed; nil of a plain image.
func (im *Image) Manifest() *Manifest { return im.manifest }

// Digest is the image's digest, "sha256:" and 64 hex digits.
func (im *Image) Digest() string { return im.digest }

// Source is where the image's objects come from.
func (im *Image) Source() Source { return im.src }

// Codec is the codec of the image's frames.
func (im *Image) Codec() chunk.Codec { return im.codec }

// PagesObject is the name of the object with the frames.
func (im *Image) PagesObject() string { return im.pages }

// missing is the error of an object that the manifest lists and the source
// cannot give the size of: damage, if it is not there.
func (im *Image) missing(name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return damaged(name, 0, "%w", err)
	}
	return fmt.Errorf("%s: %w", name, err)
}

// readWhole is ReadWhole with the error of this package.
func (im *Image) readWhole(ctx context.Context, object string, off, size int64) ([]byte, error) {
	b, err := ReadWhole(ctx, im.src, object, off, size)
	if err != nil {
		return nil, readError(object, off, err)
	}
	return b, nil
}

// read fills p from an object that is small or waited for.
func (im *Image) read(ctx context.Context, object string, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	if err := im.src.ReadRange(ctx, object, p, off, Demand); err != nil {
		return readError(object, off, err)
	}
	return nil
}

// ReadObject reads an object other than the pages whole. Its size and SHA-256
// are those of the manifest; memory is taken only for what is really there.
func (im *Image) ReadObject(ctx context.Context, name string) ([]byte, error) {
	size, err := im.objectSize(ctx, name)
	if err != nil {
		return nil, err
	}
	b, err := im.readWhole(ctx, name, 0, size)
	if err != nil {
		return nil, err
	}
	if err := im.CheckObject(name, b); err != nil {
		return nil, err
	}
	return b, nil
}

// CheckObject compares the bytes of a whole object, which the caller has read
// by itself, with the manifest. The error is a DamagedError.
func (im *Image) CheckObject(name string, b []byte) error {
	sum := sha256.Sum256(b)
	if want := im.manifest.Objects[name].SHA256; hex.EncodeToString(sum[:]) != want {
		err := damaged(name, 0, "%w: it is %x, not %s", errWrongSum, sum, want)
		im.reject(name, 0, int64(len(b)), err)
		return err
	}
	return nil
}

// reject tells the source, if it wants to know, that it gave damaged bytes, and notes in
// err, a DamagedError, whether it may give others.
func (im *Image) reject(object string, off, n int64, err error) {
	r, ok := im.src.(Rejecter)
	if !ok {
		return
	}
	again := r.Reject(object, off, n, err)
	var d *DamagedError
	if errors.As(err, &d) {
		d.Again = again
	}
}
