package uffd

import (
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

var (
	layoutAPI          apiArg
	layoutRange        rangeArg
	layoutRegister     registerArg
	layoutCopy         copyArg
	layoutFill         fillArg
	layoutWriteProtect writeProtectArg
	layoutMsg          Msg
)

const argAt = unsafe.Offsetof(layoutMsg.arg)

// abi is the kernel's header in its own names (Linux 6.18,
// include/uapi/linux/userfaultfd.h): what the header says, and what we have.
var abi = []struct {
	name         string
	header, ours uint64
}{
	{"UFFD_API", 0xAA, apiVersion},
	{"USERFAULTFD_IOC_NEW", 0xAA00, ioctlNew},
	{"UFFDIO_API", iowr(0x3F, 24), ioctlAPI},
	{"UFFDIO_REGISTER", iowr(0x00, 32), ioctlRegister},
	{"UFFDIO_UNREGISTER", ior(0x01, 16), ioctlUnregister},
	{"UFFDIO_WAKE", ior(0x02, 16), ioctlWake},
	{"UFFDIO_COPY", iowr(0x03, 40), ioctlCopy},
	{"UFFDIO_ZEROPAGE", iowr(0x04, 32), ioctlZeropage},
	{"UFFDIO_MOVE", iowr(0x05, 40), ioctlMove},
	{"UFFDIO_WRITEPROTECT", iowr(0x06, 24), ioctlWriteProtect},
	{"UFFDIO_CONTINUE", iowr(0x07, 32), ioctlContinue},
	{"UFFDIO_POISON", iowr(0x08, 32), ioctlPoison},

	{"sizeof(uffdio_api)", 24, uint64(unsafe.Sizeof(layoutAPI))},
	{"uffdio_api.api", 0, uint64(unsafe.Offsetof(layoutAPI.api))},
	{"uffdio_api.features", 8, uint64(unsafe.Offsetof(layoutAPI.features))},
	{"uffdio_api.ioctls", 16, uint64(unsafe.Offsetof(layoutAPI.ioctls))},
	{"sizeof(uffdio_range)", 16, uint64(unsafe.Sizeof(layoutRange))},
	{"uffdio_range.start", 0, uint64(unsafe.Offsetof(layoutRange.start))},
	{"uffdio_range.len", 8, uint64(unsafe.Offsetof(layoutRange.length))},
	{"sizeof(uffdio_register)", 32, uint64(unsafe.Sizeof(layoutRegister))},
	{"uffdio_register.range", 0, uint64(unsafe.Offsetof(layoutRegister.start))},
	{"uffdio_register.mode", 16, uint64(unsafe.Offsetof(layoutRegister.mode))},
	{"uffdio_register.ioctls", 24, uint64(unsafe.Offsetof(layoutRegister.ioctls))},
	{"sizeof(uffdio_copy)", 40, uint64(unsafe.Sizeof(layoutCopy))},
	{"uffdio_copy.dst", 0, uint64(unsafe.Offsetof(layoutCopy.dst))},
	{"uffdio_copy.src", 8, uint64(unsafe.Offsetof(layoutCopy.src))},
	{"uffdio_copy.len", 16, uint64(unsafe.Offsetof(layoutCopy.length))},
	{"uffdio_copy.mode", 24, uint64(unsafe.Offsetof(layoutCopy.mode))},
	{"uffdio_copy.copy", 32, uint64(unsafe.Offsetof(layoutCopy.done))},
	{"sizeof(uffdio_move)", 40, uint64(unsafe.Sizeof(layoutCopy))},
	{"uffdio_move.dst", 0, uint64(unsafe.Offsetof(layoutCopy.dst))},
	{"uffdio_move.src", 8, uint64(unsafe.Offsetof(layoutCopy.src))},
	{"uffdio_move.len", 16, uint64(unsafe.Offsetof(layoutCopy.length))},
	{"uffdio_move.mode", 24, uint64(unsafe.Offsetof(layoutCopy.mode))},
	{"uffdio_move.move", 32, uint64(unsafe.Offsetof(layoutCopy.done))},
	{"sizeof(uffdio_zeropage)", 32, uint64(unsafe.Sizeof(layoutFill))},
	{"uffdio_zeropage.range", 0, uint64(unsafe.Offsetof(layoutFill.start))},
	{"uffdio_zeropage.mode", 16, uint64(unsafe.Offsetof(layoutFill.mode))},
	{"uffdio_zeropage.zeropage", 24, uint64(unsafe.Offsetof(layoutFill.done))},
	{"sizeof(uffdio_continue)", 32, uint64(unsafe.Sizeof(layoutFill))},
	{"uffdio_continue.range", 0, uint64(unsafe.Offsetof(layoutFill.start))},
	{"uffdio_continue.mode", 16, uint64(unsafe.Offsetof(layoutFill.mode))},
	{"uffdio_continue.mapped", 24, uint64(unsafe.Offsetof(layoutFill.done))},
	{"sizeof(uffdio_poison)", 32, uint64(unsafe.Sizeof(layoutFill))},
	{"uffdio_poison.range", 0, uint64(unsafe.Offsetof(layoutFill.start))},
	{"uffdio_poison.mode", 16, uint64(unsafe.Offsetof(layoutFill.mode))},
	{"uffdio_poison.updated", 24, uint64(unsafe.Offsetof(layoutFill.done))},
	{"sizeof(uffdio_writeprotect)", 24, uint64(unsafe.Sizeof(layoutWriteProtect))},
	{"uffdio_writeprotect.range", 0, uint64(unsafe.Offsetof(layoutWriteProtect.start))},
	{"uffdio_writeprotect.mode", 16, uint64(unsafe.Offsetof(layoutWriteProtect.mode))},

	{"sizeof(uffd_msg)", 32, MsgSize},
	{"sizeof(uffd_msg)", 32, uint64(unsafe.Sizeof(layoutMsg))},
	{"uffd_msg.event", 0, uint64(unsafe.Offsetof(layoutMsg.event))},
	{"uffd_msg.arg.pagefault.flags", 8, uint64(argAt)},
	{"uffd_msg.arg.pagefault.address", 16, uint64(argAt + 8)},
	{"uffd_msg.arg.pagefault.feat.ptid", 24, uint64(argAt + 16)},
	{"uffd_msg.arg.fork.ufd", 8, uint64(argAt)},
	{"uffd_msg.arg.remap.from", 8, uint64(argAt)},
	{"uffd_msg.arg.remap.to", 16, uint64(argAt + 8)},
	{"uffd_msg.arg.remap.len", 24, uint64(argAt + 16)},
	{"uffd_msg.arg.remove.start", 8, uint64(argAt)},
	{"uffd_msg.arg.remove.end", 16, uint64(argAt + 8)},

	{"UFFD_EVENT_PAGEFAULT", 0x12, uint64(EventPagefault)},
	{"UFFD_EVENT_FORK", 0x13, uint64(EventFork)},
	{"UFFD_EVENT_REMAP", 0x14, uint64(EventRemap)},
	{"UFFD_EVENT_REMOVE", 0x15, uint64(EventRemove)},
	{"UFFD_EVENT_UNMAP", 0x16, uint64(EventUnmap)},
	{"UFFD_PAGEFAULT_FLAG_WRITE", 1 << 0, uint64(FaultWrite)},
	{"UFFD_PAGEFAULT_FLAG_WP", 1 << 1, uint64(FaultWriteProtect)},
	{"UFFD_PAGEFAULT_FLAG_MINOR", 1 << 2, uint64(FaultMinor)},

	{"UFFD_FEATURE_PAGEFAULT_FLAG_WP", 1 << 0, uint64(FeatureWriteProtect)},
	{"UFFD_FEATURE_EVENT_FORK", 1 << 1, uint64(FeatureEventFork)},
	{"UFFD_FEATURE_EVENT_REMAP", 1 << 2, uint64(FeatureEventRemap)},
	{"UFFD_FEATURE_EVENT_REMOVE", 1 << 3, uint64(FeatureEventRemove)},
	{"UFFD_FEATURE_MISSING_HUGETLBFS", 1 << 4, uint64(FeatureMissingHugetlbfs)},
	{"UFFD_FEATURE_MISSING_SHMEM", 1 << 5, uint64(FeatureMissingShmem)},
	{"UFFD_FEATURE_EVENT_UNMAP", 1 << 6, uint64(FeatureEventUnmap)},
	{"UFFD_FEATURE_SIGBUS", 1 << 7, uint64(FeatureSIGBUS)},
	{"UFFD_FEATURE_THREAD_ID", 1 << 8, uint64(FeatureThreadID)},
	{"UFFD_FEATURE_MINOR_HUGETLBFS", 1 << 9, uint64(FeatureMinorHugetlbfs)},
	{"UFFD_FEATURE_MINOR_SHMEM", 1 << 10, uint64(FeatureMinorShmem)},
	{"UFFD_FEATURE_EXACT_ADDRESS", 1 << 11, uint64(FeatureExactAddress)},
	{"UFFD_FEATURE_WP_HUGETLBFS_SHMEM", 1 << 12, uint64(FeatureWriteProtectShmem)},
	{"UFFD_FEATURE_WP_UNPOPULATED", 1 << 13, uint64(FeatureWriteProtectUnpopulated)},
	{"UFFD_FEATURE_POISON", 1 << 14, uint64(FeaturePoison)},
	{"UFFD_FEATURE_WP_ASYNC", 1 << 15, uint64(FeatureWriteProtectAsync)},
	{"UFFD_FEATURE_MOVE", 1 << 16, uint64(FeatureMove)},

	{"UFFDIO_REGISTER_MODE_MISSING", 1 << 0, uint64(ModeMissing)},
	{"UFFDIO_REGISTER_MODE_WP", 1 << 1, uint64(ModeWriteProtect)},
	{"UFFDIO_REGISTER_MODE_MINOR", 1 << 2, uint64(ModeMinor)},
	{"UFFDIO_COPY_MODE_DONTWAKE", 1 << 0, uint64(DontWake)},
	{"UFFDIO_COPY_MODE_WP", 1 << 1, uint64(WriteProtected)},
	{"UFFDIO_ZEROPAGE_MODE_DONTWAKE", 1 << 0, uint64(DontWake)},
	{"UFFDIO_CONTINUE_MODE_DONTWAKE", 1 << 0, uint64(DontWake)},
	{"UFFDIO_CONTINUE_MODE_WP", 1 << 1, uint64(WriteProtected)},
	{"UFFDIO_POISON_MODE_DONTWAKE", 1 << 0, uint64(DontWake)},
	{"UFFDIO_MOVE_MODE_DONTWAKE", 1 << 0, uint64(MoveDontWake)},
	{"UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES", 1 << 1, uint64(MoveAllowSourceHoles)},
	{"UFFDIO_WRITEPROTECT_MODE_WP", 1 << 0, uint64(Protect)},
	{"UFFDIO_WRITEPROTECT_MODE_DONTWAKE", 1 << 1, uint64(UnprotectDontWake)},
	{"UFFD_USER_MODE_ONLY", 1, uint64(UserModeOnly)},
}

// iowr and ior are _IOWR and _IOR of <asm-generic/ioctl.h> for UFFDIO.
func iowr(nr, size uint64) uint64 { return 3<<30 | size<<16 | 0xAA<<8 | nr }
func ior(nr, size uint64) uint64  { return 2<<30 | size<<16 | 0xAA<<8 | nr }

func TestABI(t *testing.T) {
	for _, e := range abi {
		if e.ours != e.header {
			t.Errorf("%s = %#x, want %#x", e.name, e.ours, e.header)
		}
	}
	for i, e := range featureTable {
		name := "UFFD_FEATURE_" + e.name
		for _, a := range abi {
			if a.name == name && a.header != 1<<i {
				t.Errorf("featureTable[%d] is %s, whose bit is %#x", i, name, a.header)
			}
		}
	}
	if KnownFeatures != 1<<len(featureTable)-1 {
		t.Errorf("KnownFeatures = %#x, but %d features have names", uint64(KnownFeatures), len(featureTable))
	}
	if CloseOnExec != unix.O_CLOEXEC || NonBlock != unix.O_NONBLOCK {
		t.Error("the flags of Open are not those of open(2)")
	}
}

// ABITable is the header's side of the table by name, for TestABIHeader.
func ABITable() map[string]uint64 {
	table := map[string]uint64{}
	for _, e := range abi {
		table[e.name] = e.header
	}
	return table
}
