package proc

import (
	"structs"
	"unsafe"

	"golang.org/x/sys/unix"
)

// OwnerEx is struct f_owner_ex: who gets the signals of a descriptor.
type OwnerEx struct {
	_    structs.HostLayout
	Type int32 // F_OWNER_TID, F_OWNER_PID, F_OWNER_PGRP
	PID  int32
}

// DescriptorOwner is fcntl(F_GETOWN_EX): who gets the signals of fd; its PID is
// 0 where nobody does.
func DescriptorOwner(fd int) (OwnerEx, error) {
	var o OwnerEx
	_, _, errno := unix.Syscall(unix.SYS_FCNTL, uintptr(fd), unix.F_GETOWN_EX, uintptr(unsafe.Pointer(&o)))
	if errno != 0 {
		return OwnerEx{}, errno
	}
	return o, nil
}

// epollSlot is struct kcmp_epoll_slot.
type epollSlot struct {
	_              structs.HostLayout
	efd, tfd, toff uint32
}

// Watches reports whether the nth watch on descriptor number tfd, in the order
// of fdinfo, of the epoll instance efd is on what descriptor fd refers to; all
// are descriptors of one process. A number may be watched more than once: each
// time, it was another file.
func Watches(pid, efd, tfd, nth, fd int) (bool, error) {
	slot := epollSlot{efd: uint32(efd), tfd: uint32(tfd), toff: uint32(nth)}
	order, err := kcmp(pid, pid, kcmpEpollTFD, uintptr(fd), uintptr(unsafe.Pointer(&slot)))
	return order == 0 && err == nil, err
}
