package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// The format that this package writes, and the newest that it reads. A reader
// accepts every version up to its own.
const FormatVersion = 1

// formatName is what a manifest says it is.
const formatName = "lazyrestore-image"

// MaxManifest is the size in bytes up to which a manifest is read.
const MaxManifest = 1 << 20

// MaxProcess is the size in bytes up to which a ProcessObject is read, and written: it is held in
// memory as a whole, and a file says for nothing that it has terabytes. Mostly it is less
// than a MiB, but what is queued in pipes and sockets is in it too.
const MaxProcess = 256 << 20

// The objects of an image, but for the pages, whose name depends on the codec.
const (
	ManifestObject = "manifest.json" // what the image is; written last
	ProcessObject  = "process.bin"   // what the engine needs to rebuild the process
	EagerObject    = "eager.raw"     // pages that must be there from the start
	IndexObject    = "pages.idx"     // where in the pages object each page is
)

// PagesObject is the name of the object that holds the frames.
func PagesObject(c chunk.Codec) string { return "pages." + c.Ext() }

// A Manifest describes an image, for people and tools.
type Manifest struct {
	Format    string            `json:"format"`  // always "lazyrestore-image"
	Version   int               `json:"version"` // of the format
	Writer    string            `json:"writer"`  // the program that wrote it
	Created   time.Time         `json:"created"`
	Codec     string            `json:"codec"`      // chunk.Codec's name
	ChunkSize int               `json:"chunk_size"` // bytes of plain data in a full frame
	Machine   Machine           `json:"machine"`
	Layers    []Layer           `json:"layers"` // images this one builds on; none in version 1
	Objects   map[string]Object `json:"objects"`
	IndexRoot string            `json:"index_root"` // SHA-256 (hex) of the tail of pages.idx
	Process   Process           `json:"process"`
}

// Names is all objects of the image, in no order: the manifest is one of them.
func (m *Manifest) Names() iter.Seq[string] {
	return func(yield func(string) bool) {
		if !yield(ManifestObject) {
			return
		}
		for name := range m.Objects {
			if !yield(name) {
				return
			}
		}
	}
}

// A Machine is what an image needs of the machine that restores it.
type Machine struct {
	Arch      string `json:"arch"`      // as GOARCH has it
	XFeatures uint64 `json:"xfeatures"` // state components of xsave that registers are saved with
	PageSize  int    `json:"page_size"` // bytes
	VDSO      string `json:"vdso"`      // SHA-256 (hex) of the kernel's vDSO
}

// A Layer is an image that another one builds on.
type Layer struct {
	Digest string `json:"digest"`
}

// An Object is a file of the image.
type Object struct {
	Size   int64  `json:"size"`             // bytes
	SHA256 string `json:"sha256,omitempty"` // hex; the pages object has none, its frames have digests in the index
}

// A Process is a summary of what was saved, for people and tools.
type Process struct {
	PID         int    `json:"pid"`
	Comm        string `json:"comm"`
	Threads     int    `json:"threads"`
	Mappings    int    `json:"mappings"`
	MemoryBytes uint64 `json:"memory_bytes"` // pages looked at
	ZeroBytes   uint64 `json:"zero_bytes"`   // of them, zero and not stored
	StoredBytes uint64 `json:"stored_bytes"` // what the rest takes in the pages object
	LazyBytes   uint64 `json:"lazy_bytes"`   // of plain data restored when touched
	EagerBytes  uint64 `json:"eager_bytes"`  // of plain data restored before the start
}

// PagesObject is the name of the image's pages object.
func (m *Manifest) PagesObject() string {
	c, err := chunk.ParseCodec(m.Codec)
	if err != nil {
		return ""
	}
	return PagesObject(c)
}

// checksumField introduces a manifest's last line, the CRC-32C of all before
// that line. The line is part of the JSON, so that tools read over it.
const checksumField = "  \"crc32c\": \""

// checksumTail is the length of what follows checksumField.
const checksumTail = len("00000000\"\n}\n")

// AppendManifest appends m as the manifest object has it.
func AppendManifest(dst []byte, m *Manifest) ([]byte, error) {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", ManifestObject, err)
	}
	start := len(dst)
	dst = append(dst, bytes.TrimSuffix(b, []byte("\n}"))...)
	dst = append(dst, ",\n"...)
	sum := chunk.Checksum(dst[start:])
	return fmt.Appendf(dst, "%s%08x\"\n}\n", checksumField, sum), nil
}

// manifestHead is what says how the rest is to be read.
type manifestHead struct {
	Format  string `json:"format"`
	Version int    `json:"version"`
}

// ParseManifest reads a manifest object. Fields that it does not know are
// left alone; a manifest of a newer format is an ErrVersion, and everything
// else that is not as AppendManifest writes it a DamagedError.
func ParseManifest(b []byte) (*Manifest, error) {
	var whole error
	m, quick := quickManifest(b)
	if !quick {
		m = new(Manifest)
		whole = json.Unmarshal(b, m)
	}
	head := manifestHead{m.Format, m.Version}
	if whole != nil { // it may be of a newer format
		head = manifestHead{}
		if err := json.Unmarshal(b, &head); err != nil {
			return nil, damaged(ManifestObject, 0, "not a manifest: %w", err)
		}
	}
	switch {
	case head.Format != formatName:
		return nil, damaged(ManifestObject, 0, "not a manifest: format %q, not %q", head.Format, formatName)
	case head.Version > FormatVersion:
		return nil, fmt.Errorf("%s: %w: the image has version %d, this program reads up to version %d",
			ManifestObject, ErrVersion, head.Version, FormatVersion)
	case head.Version < 1:
		return nil, damaged(ManifestObject, 0, "format version %d", head.Version)
	}
	if err := checkManifestSum(b); err != nil {
		return nil, err
	}
	if whole != nil {
		return nil, damaged(ManifestObject, 0, "not a manifest: %w", whole)
	}
	if err := m.check(); err != nil {
		return nil, damaged(ManifestObject, 0, "%w", err)
	}
	return m, nil
}

// checkManifestSum compares the checksum in the last line of a manifest.
func checkManifestSum(b []byte) error {
	at := len(b) - checksumTail - len(checksumField)
	if at < 0 || string(b[at:at+len(checksumField)]) != checksumField || string(b[len(b)-4:]) != "\"\n}\n" {
		return damaged(ManifestObject, int64(max(at, 0)), "no checksum in the last line")
	}
	sum, err := strconv.ParseUint(string(b[at+len(checksumField):len(b)-4]), 16, 32)
	if err != nil {
		return damaged(ManifestObject, int64(at), "checksum: %w", err)
	}
	if got := chunk.Checksum(b[:at]); got != uint32(sum) {
		return damaged(ManifestObject, 0, "checksum is %08x, not %08x", got, uint32(sum))
	}
	return nil
}

// maxObject is the largest size of an object that makes sense: more than
// x86-64 can address.
const maxObject = 1 << 58

// check reports what in a manifest cannot be.
func (m *Manifest) check() error {
	codec, err := chunk.ParseCodec(m.Codec)
	switch {
	case err != nil:
		return err
	case !chunk.ValidSize(m.ChunkSize):
		return fmt.Errorf("chunk size %d", m.ChunkSize)
	case m.Machine.PageSize != page.Size:
		return fmt.Errorf("page size %d", m.Machine.PageSize)
	case len(m.Layers) > 0:
		return fmt.Errorf("layers in format version %d", m.Version)
	}
	if _, err := parseHex(m.IndexRoot); err != nil {
		return fmt.Errorf("index_root: %w", err)
	}
	for _, need := range []string{IndexObject, PagesObject(codec)} {
		if _, ok := m.Objects[need]; !ok {
			return fmt.Errorf("no object %s", need)
		}
	}
	for name, o := range m.Objects {
		if err := checkObjectName(name); err != nil {
			return err
		}
		if o.Size < 0 || o.Size > maxObject {
			return fmt.Errorf("size of %s: %d", name, o.Size)
		}
		if name == ProcessObject && o.Size > MaxProcess {
			return fmt.Errorf("size of %s: %d, which is beyond %d", name, o.Size, MaxProcess)
		}
		if name == PagesObject(codec) && o.SHA256 == "" {
			continue
		}
		if _, err := parseHex(o.SHA256); err != nil {
			return fmt.Errorf("sha256 of %s: %w", name, err)
		}
	}
	return nil
}

// checkObjectName refuses what a store could take for something else than a
// file in the image's directory.
func checkObjectName(name string) error {
	if name == "" || len(name) > 64 || name[0] == '.' || name == ManifestObject {
		return fmt.Errorf("object name %q", name)
	}
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '-' && c != '_' {
			return fmt.Errorf("object name %q", name)
		}
	}
	return nil
}

var errDigest = errors.New("not a SHA-256 in hex")

// parseHex reads a SHA-256 in lower-case hex.
func parseHex(s string) (sum [sha256.Size]byte, err error) {
	if len(s) != 2*sha256.Size || strings.ToLower(s) != s {
		return sum, errDigest
	}
	if _, err := hex.Decode(sum[:], []byte(s)); err != nil {
		return sum, errDigest
	}
	return sum, nil
}

// digestPrefix names the hash of an image's digest, as container tools do.
const digestPrefix = "sha256:"

// digestOf is the digest of an image with that manifest object.
func digestOf(manifest []byte) string {
	sum := sha256.Sum256(manifest)
	return digestPrefix + hex.EncodeToString(sum[:])
}

// ParseDigest gives an image digest its one form, "sha256:" and 64 lower-case
// hex digits; the prefix may be missing from s.
func ParseDigest(s string) (string, error) {
	h := strings.ToLower(strings.TrimPrefix(s, digestPrefix))
	if _, err := parseHex(h); err != nil {
		return "", fmt.Errorf("image digest %q: %w", s, err)
	}
	return digestPrefix + h, nil
}
