package main

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// stopSignal is the signal that stopped a child of which waitid(2) tells: si_status,
// which follows the number of the signal, errno, code, pid and user, aligned to 8 bytes.
func stopSignal(info *unix.Siginfo) unix.Signal {
	return unix.Signal(*(*int32)(unsafe.Add(unsafe.Pointer(info), 24)))
}
