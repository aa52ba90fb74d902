package proc

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"syscall"
)

// A Call is one system call of a table: its number, and its arguments as they
// are put into registers. Addresses are those of the process that runs it.
//
// A table ends at its first call that fails, unless the call's number has the
// bit MayFail. Where a call is clone3 and its caller is the new task, that task
// goes on with the table whose address is the last argument, Args[5], which
// the system call itself does not look at.
type Call struct {
	NR   uint64
	Args [6]uint64
}

// MayFail in a call's number lets the table go on when the call fails.
const MayFail = 1 << 32

// CallSize is the size of one entry of an encoded table: the number, six
// arguments and the result, eight bytes each.
const CallSize = 64

// NotRun is the result of a call that the table did not come to (or that did
// not return: execve, exit).
const NotRun = math.MinInt64

// endOfTable stands in the place of a number in the entry behind the last.
const endOfTable = ^uint64(0)

// jumpCall stands in the place of a number in an entry that is a Jump.
const jumpCall = ^uint64(1)

// Jump is an entry that is no system call: the thread goes on in another copy
// of the loop, at code, with the table at table. It has no result.
func Jump(code, table uint64) Call {
	return Call{NR: jumpCall, Args: [6]uint64{code, table}}
}

// JumpTable is where the address of the table lies in the entry of a Jump.
const JumpTable = 16

// TableSize is how many bytes EncodeTable makes of n calls.
func TableSize(n int) int { return (n + 1) * CallSize }

// EncodeTable is the table in memory as the loop reads it, its end included.
func EncodeTable(calls []Call) []byte {
	return AppendTable(make([]byte, 0, TableSize(len(calls))), calls)
}

// AppendTable appends the encoded table to b.
func AppendTable(b []byte, calls []Call) []byte {
	n := len(b)
	b = slices.Grow(b, TableSize(len(calls)))[:n+TableSize(len(calls))]
	to := b[n:]
	for i := range calls {
		PutCall(to, &calls[i])
		to = to[CallSize:]
	}
	PutEnd(to)
	return b
}

// PutCall encodes one entry of a table into the first CallSize bytes of b.
func PutCall(b []byte, c *Call) {
	notRun := int64(NotRun)
	b = b[:CallSize]
	binary.LittleEndian.PutUint64(b, c.NR)
	for i, a := range c.Args {
		binary.LittleEndian.PutUint64(b[8+8*i:], a)
	}
	binary.LittleEndian.PutUint64(b[CallSize-8:], uint64(notRun))
}

// PutEnd encodes the entry behind the last, at which a table ends.
func PutEnd(b []byte) {
	b = b[:CallSize]
	binary.LittleEndian.PutUint64(b, endOfTable)
	clear(b[8:])
}

// DecodeResults appends the results of the calls of an encoded table that has
// been run to dst. A result from -4095 to -1 is a negated errno.
func DecodeResults(dst []int64, table []byte) ([]int64, error) {
	for ; len(table) >= CallSize; table = table[CallSize:] {
		if binary.LittleEndian.Uint64(table) == endOfTable {
			return dst, nil
		}
		dst = append(dst, int64(binary.LittleEndian.Uint64(table[CallSize-8:])))
	}
	return dst, fmt.Errorf("table of system calls: no end after %d calls", len(dst))
}

// CallError is a system call of a table that failed.
type CallError struct {
	Index int // in the table
	Call  Call
	Errno syscall.Errno // 0: the call was not run, although none before it failed
}

func (e *CallError) Error() string {
	if e.Errno == 0 {
		return fmt.Sprintf("call %d of the table (system call %d) was not run", e.Index, uint32(e.Call.NR))
	}
	return fmt.Sprintf("call %d of the table (system call %d, arguments %#x): %v",
		e.Index, uint32(e.Call.NR), e.Call.Args, e.Errno)
}

func (e *CallError) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

// Errno is the error in the result of a system call: failed says whether it is
// one.
func Errno(ret int64) (errno syscall.Errno, failed bool) {
	if ret < 0 && ret >= -4095 {
		return syscall.Errno(-ret), true
	}
	return 0, false
}

// CheckResults is nil where all calls ran and none failed but those that may;
// else a *CallError for the first that did not.
func CheckResults(calls []Call, results []int64) error {
	if len(results) != len(calls) {
		return fmt.Errorf("table of system calls: %d results for %d calls", len(results), len(calls))
	}
	for i, r := range results {
		switch {
		case calls[i].NR == jumpCall:
			return nil // what follows is not this table's
		case r == NotRun:
			return &CallError{Index: i, Call: calls[i]}
		case r < 0 && r >= -4095 && calls[i].NR&MayFail == 0:
			return &CallError{Index: i, Call: calls[i], Errno: syscall.Errno(-r)}
		}
	}
	return nil
}
