package chunk

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The zstd seekable format (contrib/seekable_format in the zstd repository):
// a file of zstd frames ends in a skippable frame that lists the sizes of all
// others, so that any zstd reads the file as one stream and a reader which
// knows the format finds a frame without reading those before it.
const (
	seekSkippable = 0x184D2A5E
	seekMagic     = 0x8F92EAB1
	seekHead      = 8 // magic number and length of the skippable frame
	seekFoot      = 9 // number of frames, descriptor, seekMagic
	seekEntry     = 8 // stored and plain length
	// SeekMaxFrames is how many frames the format allows a file to have.
	SeekMaxFrames = 0x8000000
)

// ErrSeekTable is wrapped by every error of ParseSeekTable.
var ErrSeekTable = errors.New("bad seek table")

// A SeekTable is a seek table in the making. The zero value is empty.
type SeekTable struct {
	b []byte // seekEntry bytes for each frame
}

// Add notes the next frame of a file.
func (t *SeekTable) Add(stored, plain uint32) {
	t.b = binary.LittleEndian.AppendUint32(t.b, stored)
	t.b = binary.LittleEndian.AppendUint32(t.b, plain)
}

// Frames is how many frames the table has.
func (t *SeekTable) Frames() int { return len(t.b) / seekEntry }

// Frame is the stored and the plain length of frame i.
func (t *SeekTable) Frame(i int) (stored, plain uint32) {
	e := t.b[i*seekEntry : (i+1)*seekEntry]
	return binary.LittleEndian.Uint32(e), binary.LittleEndian.Uint32(e[4:])
}

// SeekTableSize is the stored length of a table of that many frames.
func SeekTableSize(frames int) int64 {
	return seekHead + int64(frames)*seekEntry + seekFoot
}

// Append appends the table's skippable frame to dst, without checksums.
func (t *SeekTable) Append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, seekSkippable)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(t.b)+seekFoot))
	dst = append(dst, t.b...)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(t.Frames()))
	dst = append(dst, 0) // descriptor: no checksums
	return binary.LittleEndian.AppendUint32(dst, seekMagic)
}

// ParseSeekTable reads a seek table as Append writes it: b is the whole
// skippable frame. The table keeps b. The error wraps ErrSeekTable.
func ParseSeekTable(b []byte) (*SeekTable, error) {
	le := binary.LittleEndian
	if len(b) < seekHead+seekFoot {
		return nil, fmt.Errorf("%w: %d bytes", ErrSeekTable, len(b))
	}
	foot := b[len(b)-seekFoot:]
	frames := int64(le.Uint32(foot))
	switch {
	case le.Uint32(foot[5:]) != seekMagic || le.Uint32(b) != seekSkippable:
		return nil, fmt.Errorf("%w: wrong magic number", ErrSeekTable)
	case foot[4] != 0:
		return nil, fmt.Errorf("%w: descriptor %#x", ErrSeekTable, foot[4])
	case frames > SeekMaxFrames || SeekTableSize(int(frames)) != int64(len(b)) || int64(le.Uint32(b[4:])) != int64(len(b)-seekHead):
		return nil, fmt.Errorf("%w: %d frames in %d bytes", ErrSeekTable, frames, len(b))
	}
	return &SeekTable{b: b[seekHead : len(b)-seekFoot]}, nil
}
