package proc

import "unsafe"

// textAt is a view of n bytes of this program's own code.
func textAt(addr uintptr, n int) []byte {
	return unsafe.Slice((*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&addr))), n)
}
