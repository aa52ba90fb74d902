package uffd

import "structs"

// The numbers and structs of <linux/userfaultfd.h>, written out because
// distributions ship headers older than their kernels. The encoding of the
// request numbers is the generic one of <asm-generic/ioctl.h>, which x86,
// arm64, riscv and s390 use. TestABI holds all of them against a C compiler.
const (
	apiVersion = 0xAA // UFFD_API

	ioctlNew = 0xAA00 // USERFAULTFD_IOC_NEW, on /dev/userfaultfd (Linux 6.1)

	ioctlAPI          = 0xC018AA3F // UFFDIO_API
	ioctlRegister     = 0xC020AA00 // UFFDIO_REGISTER
	ioctlUnregister   = 0x8010AA01 // UFFDIO_UNREGISTER
	ioctlWake         = 0x8010AA02 // UFFDIO_WAKE
	ioctlCopy         = 0xC028AA03 // UFFDIO_COPY
	ioctlZeropage     = 0xC020AA04 // UFFDIO_ZEROPAGE
	ioctlMove         = 0xC028AA05 // UFFDIO_MOVE (Linux 6.8)
	ioctlWriteProtect = 0xC018AA06 // UFFDIO_WRITEPROTECT (Linux 5.7)
	ioctlContinue     = 0xC020AA07 // UFFDIO_CONTINUE (Linux 5.13)
	ioctlPoison       = 0xC020AA08 // UFFDIO_POISON (Linux 6.6)
)

// apiArg is struct uffdio_api.
type apiArg struct {
	_        structs.HostLayout
	api      uint64
	features Features
	ioctls   Ioctls
}

// rangeArg is struct uffdio_range.
type rangeArg struct {
	_      structs.HostLayout
	start  uint64
	length uint64
}

// registerArg is struct uffdio_register.
type registerArg struct {
	_      structs.HostLayout
	start  uint64
	length uint64
	mode   Mode
	ioctls Ioctls
}

// copyArg is struct uffdio_copy, and struct uffdio_move, which has the same
// fields. done is the count of bytes, or a negated errno.
type copyArg struct {
	_      structs.HostLayout
	dst    uint64
	src    uint64
	length uint64
	mode   uint64
	done   int64
}

// fillArg is struct uffdio_zeropage, uffdio_continue and uffdio_poison, which
// have the same fields. done is the count of bytes, or a negated errno.
type fillArg struct {
	_      structs.HostLayout
	start  uint64
	length uint64
	mode   uint64
	done   int64
}

// writeProtectArg is struct uffdio_writeprotect.
type writeProtectArg struct {
	_      structs.HostLayout
	start  uint64
	length uint64
	mode   WriteProtectMode
}
