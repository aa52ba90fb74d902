package proc

import "encoding/binary"

// Ending says what the loop does behind the last call of a table, and where a
// call failed.
type Ending uint8

// Endings of the loop.
const (
	// EndTrap stops for the tracer with SIGTRAP (int3).
	EndTrap Ending = iota
	// EndSignal sends a signal to its own thread, which stops it if there is
	// a tracer, and then returns to the context of a signal frame. R13 points
	// to four numbers: process and thread as the process itself sees them,
	// signal, address of the frame plus 8.
	EndSignal
	// EndExit ends the process with status 127.
	EndExit
)

// loopMark stands behind each loop, see MARK in loop_linux_amd64.s.
const loopMark = 0x6c6f6f702d656e64

// maxLoopCode bounds the search for the mark.
const maxLoopCode = 512

func loopTrapAddr() uintptr
func loopSignalAddr() uintptr
func loopExitAddr() uintptr

// rawCloneTable is clone3(args, size) whose child runs table by the loop with
// EndExit. It gives the child's pid or a negated errno.
func rawCloneTable(args uintptr, size uintptr, table uintptr) int64

// LoopCode is the code that runs a table of system calls, a few dozen bytes
// that work at any address. It expects the address of an encoded table in R12
// (and of EndSignal's numbers in R13) and uses no stack. It stores the result
// of each call in its entry, stops at the first that fails and may not, and
// then does what the ending says.
func LoopCode(ending Ending) []byte {
	var addr uintptr
	switch ending {
	case EndTrap:
		addr = loopTrapAddr()
	case EndSignal:
		addr = loopSignalAddr()
	case EndExit:
		addr = loopExitAddr()
	}
	// The mark makes the length independent of where the linker puts what
	// follows; it is in every loop, so the search never leaves the text.
	var code []byte
	for len(code) < maxLoopCode {
		b := textAt(addr+uintptr(len(code)), 8)
		if binary.LittleEndian.Uint64(b) == loopMark {
			break
		}
		code = append(code, b[0])
	}
	return code
}
