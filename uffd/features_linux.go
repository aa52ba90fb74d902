package uffd

import (
	"fmt"
	"math/bits"
	"strings"
)

// Features is a set of what a kernel can do beyond the basics of Linux 4.3,
// and of what a descriptor has been told to do (UFFD_FEATURE_*).
type Features uint64

// The features, in the order of their bits.
const (
	// FeatureWriteProtect offers ModeWriteProtect on anonymous memory, and
	// FaultWriteProtect in fault events.
	FeatureWriteProtect Features = 1 << iota
	// FeatureEventFork makes a fork deliver EventFork, with a descriptor for
	// the child. Without it the child's memory is not registered: it reads
	// zeros where pages are missing. Asking for it needs CAP_SYS_PTRACE.
	FeatureEventFork
	// FeatureEventRemap makes mremap(2) deliver EventRemap.
	FeatureEventRemap
	// FeatureEventRemove makes madvise(2) with MADV_DONTNEED, MADV_REMOVE or
	// MADV_FREE deliver EventRemove.
	FeatureEventRemove
	// FeatureMissingHugetlbfs offers ModeMissing on hugetlb memory. It need
	// not be asked for.
	FeatureMissingHugetlbfs
	// FeatureMissingShmem offers ModeMissing on shared memory. It need not be
	// asked for.
	FeatureMissingShmem
	// FeatureEventUnmap makes munmap(2), and whatever unmaps implicitly,
	// deliver EventUnmap.
	FeatureEventUnmap
	// FeatureSIGBUS sends SIGBUS to a faulting thread in place of an event.
	FeatureSIGBUS
	// FeatureThreadID fills Fault.TID.
	FeatureThreadID
	// FeatureMinorHugetlbfs offers ModeMinor on hugetlb memory.
	FeatureMinorHugetlbfs
	// FeatureMinorShmem offers ModeMinor on shared memory.
	FeatureMinorShmem
	// FeatureExactAddress gives Fault.Addr to the byte instead of the page.
	FeatureExactAddress
	// FeatureWriteProtectShmem offers ModeWriteProtect on shared memory and
	// hugetlb memory.
	FeatureWriteProtectShmem
	// FeatureWriteProtectUnpopulated makes WriteProtect hold for anonymous
	// pages that are not there yet.
	FeatureWriteProtectUnpopulated
	// FeaturePoison offers Poison.
	FeaturePoison
	// FeatureWriteProtectAsync resolves write-protect faults in the kernel:
	// no events; what has been written is read with PAGEMAP_SCAN.
	FeatureWriteProtectAsync
	// FeatureMove offers Move.
	FeatureMove

	featureEnd
)

// KnownFeatures is every feature that this package knows by name.
const KnownFeatures = featureEnd - 1

// featureTable says for each bit the header's name, less UFFD_FEATURE_, and
// the first release of Linux that has it (git history of
// include/uapi/linux/userfaultfd.h).
var featureTable = [...]struct {
	name         string
	major, minor uint8
}{
	{"PAGEFAULT_FLAG_WP", 5, 7},
	{"EVENT_FORK", 4, 11},
	{"EVENT_REMAP", 4, 11},
	{"EVENT_REMOVE", 4, 11},
	{"MISSING_HUGETLBFS", 4, 11},
	{"MISSING_SHMEM", 4, 11},
	{"EVENT_UNMAP", 4, 11},
	{"SIGBUS", 4, 14},
	{"THREAD_ID", 4, 14},
	{"MINOR_HUGETLBFS", 5, 13},
	{"MINOR_SHMEM", 5, 14},
	{"EXACT_ADDRESS", 5, 18},
	{"WP_HUGETLBFS_SHMEM", 5, 19},
	{"WP_UNPOPULATED", 6, 4},
	{"POISON", 6, 6},
	{"WP_ASYNC", 6, 7},
	{"MOVE", 6, 8},
}

// Has reports whether f holds all of want.
func (f Features) Has(want Features) bool { return f&want == want }

// Each calls yield for every single feature in f, lowest bit first, until it
// returns false.
func (f Features) Each(yield func(Features) bool) {
	for f != 0 {
		one := f & -f
		if !yield(one) {
			return
		}
		f &^= one
	}
}

// String gives the kernel's names less UFFD_FEATURE_, joined by "|"; a bit
// that has no name here is given in hex. The empty set is "0".
func (f Features) String() string {
	if f == 0 {
		return "0"
	}
	var b strings.Builder
	for one := range f.Each {
		if b.Len() > 0 {
			b.WriteByte('|')
		}
		if i := bits.TrailingZeros64(uint64(one)); i < len(featureTable) {
			b.WriteString(featureTable[i].name)
		} else {
			fmt.Fprintf(&b, "%#x", uint64(one))
		}
	}
	return b.String()
}

// Since is the first release of Linux that has all of f, such as "6.6". It is
// empty for no features, and where f holds a bit that has no name here.
func (f Features) Since() string {
	if f == 0 || f&^KnownFeatures != 0 {
		return ""
	}
	var major, minor uint8
	for one := range f.Each {
		e := featureTable[bits.TrailingZeros64(uint64(one))]
		if e.major > major || (e.major == major && e.minor > minor) {
			major, minor = e.major, e.minor
		}
	}
	return fmt.Sprintf("%d.%d", major, minor)
}

// Ioctls is a set of operations: what a descriptor, or a registered range,
// allows. The bits are the numbers of the requests (_UFFDIO_*).
type Ioctls uint64

// The operations.
const (
	IoctlRegister     Ioctls = 1 << 0x00
	IoctlUnregister   Ioctls = 1 << 0x01
	IoctlWake         Ioctls = 1 << 0x02
	IoctlCopy         Ioctls = 1 << 0x03
	IoctlZero         Ioctls = 1 << 0x04
	IoctlMove         Ioctls = 1 << 0x05
	IoctlWriteProtect Ioctls = 1 << 0x06
	IoctlContinue     Ioctls = 1 << 0x07
	IoctlPoison       Ioctls = 1 << 0x08
	IoctlAPI          Ioctls = 1 << 0x3F
)

// Has reports whether s holds all of want.
func (s Ioctls) Has(want Ioctls) bool { return s&want == want }

// Mode says which faults of a range are reported (UFFDIO_REGISTER_MODE_*).
type Mode uint64

// The modes, which may be combined.
const (
	// ModeMissing: a page that is not there. Anonymous memory, and with
	// FeatureMissingShmem and FeatureMissingHugetlbfs those kinds too. Private
	// mappings of files cannot be registered.
	ModeMissing Mode = 1 << iota
	// ModeWriteProtect: a write to a page that WriteProtect protects.
	ModeWriteProtect
	// ModeMinor: a page of shared memory that is in the page cache but not in
	// this mapping's page table; resolved by Continue.
	ModeMinor
)

// CopyMode changes how Copy, Zero, Continue and Poison end.
type CopyMode uint64

// The bits of a CopyMode.
const (
	// DontWake leaves the threads that wait for the range asleep until Wake.
	DontWake CopyMode = 1 << 0
	// WriteProtected installs the pages write-protected. Only for Copy, and
	// from Linux 6.4 Continue, in a range registered with ModeWriteProtect.
	WriteProtected CopyMode = 1 << 1
)

// MoveMode changes what Move does.
type MoveMode uint64

// The bits of a MoveMode.
const (
	// MoveDontWake leaves the threads that wait for the range asleep.
	MoveDontWake MoveMode = 1 << 0
	// MoveAllowSourceHoles leaves out pages that the source does not have,
	// where otherwise the move ends with ENOENT.
	MoveAllowSourceHoles MoveMode = 1 << 1
)

// WriteProtectMode says whether to protect. Zero lifts the protection and
// wakes who waits for it.
type WriteProtectMode uint64

// The bits of a WriteProtectMode.
const (
	// Protect protects the range.
	Protect WriteProtectMode = 1 << 0
	// UnprotectDontWake lifts the protection but leaves waiters asleep. It
	// cannot be combined with Protect.
	UnprotectDontWake WriteProtectMode = 1 << 1
)
