package chunk

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// A Codec is a way of storing chunks.
type Codec uint8

// The codecs. Their numbers are only used within a process; files name a
// codec by its String.
const (
	None Codec = iota // stored as they are
	Zstd              // zstd frames, one per chunk, without a content checksum
	S2                // s2 blocks
	LZ4               // bare LZ4 blocks
)

// ErrCodec is returned for a codec or a level that does not exist.
var ErrCodec = errors.New("unknown codec")

var codecNames = [...]string{None: "none", Zstd: "zstd", S2: "s2", LZ4: "lz4"}

// String is the codec's name, as manifests and the command line have it.
func (c Codec) String() string {
	if int(c) < len(codecNames) {
		return codecNames[c]
	}
	return "codec(" + strconv.Itoa(int(c)) + ")"
}

// Ext is the ending of a file of such frames, without a dot.
func (c Codec) Ext() string {
	switch c {
	case Zstd:
		return "zst"
	case S2:
		return "s2"
	case LZ4:
		return "lz4"
	default:
		return "raw"
	}
}

// ParseCodec is the codec of that name, or ErrCodec.
func ParseCodec(name string) (Codec, error) {
	for c, n := range codecNames {
		if n == name {
			return Codec(c), nil
		}
	}
	return 0, fmt.Errorf("%w %q (known: %s)", ErrCodec, name, strings.Join(codecNames[:], ", "))
}

// A Spec is a codec and how hard it should try.
type Spec struct {
	Codec Codec
	Level int // of zstd: 1 fastest, 2 default, 3 better, 4 best; of s2: 1 fastest, 2 better; 0: the codec's default
}

// DefaultSpec is what an image is written with unless asked otherwise: of the
// codecs the one with the smallest files, at its fastest level.
var DefaultSpec = Spec{Codec: Zstd, Level: 1}

// maxLevel is the highest level of each codec; a codec without levels has 0.
var maxLevel = [...]int{None: 0, Zstd: 4, S2: 2, LZ4: 0}

// ParseSpec reads a codec's name, and after a colon its level: "zstd:3",
// "lz4". The error wraps ErrCodec.
func ParseSpec(s string) (Spec, error) {
	name, level, has := strings.Cut(s, ":")
	c, err := ParseCodec(name)
	if err != nil {
		return Spec{}, err
	}
	spec := Spec{Codec: c}
	if !has {
		return spec, nil
	}
	if maxLevel[c] == 0 {
		return Spec{}, fmt.Errorf("%w %q: %s has no levels", ErrCodec, s, c)
	}
	spec.Level, err = strconv.Atoi(level)
	if err != nil || spec.Level < 1 || spec.Level > maxLevel[c] {
		return Spec{}, fmt.Errorf("%w %q: the levels of %s are 1 to %d", ErrCodec, s, c, maxLevel[c])
	}
	return spec, nil
}

// String is the form that ParseSpec reads.
func (s Spec) String() string {
	if s.Level == 0 {
		return s.Codec.String()
	}
	return s.Codec.String() + ":" + strconv.Itoa(s.Level)
}

// Check reports, as ErrCodec, a codec or level that does not exist.
func (s Spec) Check() error {
	if int(s.Codec) >= len(codecNames) || s.Level < 0 || s.Level > maxLevel[s.Codec] {
		return fmt.Errorf("%w %q", ErrCodec, s)
	}
	return nil
}

// MaxFrame is an upper bound for the stored bytes of a chunk with n bytes of
// plain data.
func MaxFrame(c Codec, n int) int {
	if c == Zstd {
		return RawZstdSize(n)
	}
	return n
}
