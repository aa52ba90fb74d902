package proc

import (
	"encoding/binary"
	"fmt"
)

// Entries of the auxiliary vector that we use; see getauxval(3).
const (
	AuxPhdr        = 3
	AuxEntry       = 9
	AuxSysinfoEHDR = 33 // address of the vDSO
	AuxRSeqSize    = 27 // AT_RSEQ_FEATURE_SIZE
)

// AuxValue is one entry of the auxiliary vector.
type AuxValue struct{ Type, Value uint64 }

// Auxv is an auxiliary vector without the AT_NULL at its end.
type Auxv []AuxValue

// Get is the value of the first entry of a type.
func (a Auxv) Get(typ uint64) (uint64, bool) {
	for _, e := range a {
		if e.Type == typ {
			return e.Value, true
		}
	}
	return 0, false
}

// ParseAuxv reads /proc/PID/auxv of a 64-bit process. A process without memory
// has an empty one.
func ParseAuxv(b []byte) (Auxv, error) {
	if len(b)%16 != 0 {
		return nil, fmt.Errorf("auxv: %d bytes, not a multiple of 16", len(b))
	}
	a := make(Auxv, 0, len(b)/16)
	for ; len(b) > 0; b = b[16:] {
		e := AuxValue{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])}
		if e.Type == 0 {
			break
		}
		a = append(a, e)
	}
	return a, nil
}
