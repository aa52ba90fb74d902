package uffd

// APIRequest and RegisterRequest are for those who make a process that is to
// register memory of its own, and who hand it finished system calls: the
// number and the argument of an ioctl(2) on a userfaultfd, as 64-bit words in
// the machine's order. The argument is written to, so it needs a place of its
// own in the process.

// APIRequest is what Enable issues.
func APIRequest(want Features) (request uint64, arg [3]uint64) {
	return ioctlAPI, [3]uint64{apiVersion, uint64(want), 0}
}

// RegisterRequest is what Register issues.
func RegisterRequest(start, length uint64, mode Mode) (request uint64, arg [4]uint64) {
	return ioctlRegister, [4]uint64{start, length, uint64(mode), 0}
}
