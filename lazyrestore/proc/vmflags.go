package proc

import (
	"fmt"
	"math/bits"
	"strings"
)

// VMFlags is the set of a mapping's flags, as the two-letter words of the line
// VmFlags in /proc/PID/smaps give it. The numbers are our own.
type VMFlags uint64

// Flags of a mapping; their words are in vmFlagWords, in the same order. See
// show_smap_vma_flags in the kernel's fs/proc/task_mmu.c.
const (
	VMRead        VMFlags = 1 << iota
	VMWrite               // may be written now
	VMExec                // may be executed now
	VMShared              // a shared mapping that may be written
	VMMayRead             // mprotect may allow it
	VMMayWrite            // mprotect may allow it
	VMMayExec             // mprotect may allow it
	VMMayShare            // MAP_SHARED
	VMGrowsDown           // MAP_GROWSDOWN: a stack
	VMPFNMap              // raw page frames of a device
	VMDenyWrite           // MAP_DENYWRITE, before Linux 5.16
	VMLocked              // mlock
	VMIO                  // memory of a device
	VMSeqRead             // MADV_SEQUENTIAL
	VMRandRead            // MADV_RANDOM
	VMDontCopy            // MADV_DONTFORK
	VMDontExpand          // mremap may not grow it
	VMLockOnFault         // mlock2 with MLOCK_ONFAULT
	VMAccount             // counted by overcommit
	VMNoReserve           // MAP_NORESERVE
	VMHugeTLB             // hugetlbfs
	VMSync                // MAP_SYNC
	VMArch1               // particular to the architecture
	VMWipeOnFork          // MADV_WIPEONFORK
	VMDontDump            // MADV_DONTDUMP
	VMSoftDirty           // written since the bits were cleared
	VMMixedMap            // pages and page frames
	VMHugePage            // MADV_HUGEPAGE
	VMNoHugePage          // MADV_NOHUGEPAGE
	VMMergeable           // MADV_MERGEABLE
	VMUffdMissing         // registered with a userfaultfd
	VMUffdWP              // registered with a userfaultfd
	VMUffdMinor           // registered with a userfaultfd
	VMShadowStack         // a shadow stack
	VMSealed              // mseal(2)
	VMDroppable           // MAP_DROPPABLE
	VMMaybeGuard          // may hold guard regions
)

// vmFlagWords are the words of the flags, two letters each, in order of bits.
const vmFlagWords = "rdwrexshmrmwmemsgdpfdwloiosrrrdcdelfacnrhtsfarwfddsdmmhgnhmgumuwuisssldpgu"

// vmFlagCount is the number of flags that we know.
const vmFlagCount = len(vmFlagWords) / 2

// vmFlagIndex gives the bit of a word of two letters, plus one; 0: not known.
// It is a table and not a map so that no work is done at start-up.
func vmFlagIndex(a, b byte) int {
	for i := 0; i < len(vmFlagWords); i += 2 {
		if vmFlagWords[i] == a && vmFlagWords[i+1] == b {
			return i/2 + 1
		}
	}
	return 0
}

// Has reports whether all of the flags in f are set.
func (v VMFlags) Has(f VMFlags) bool { return v&f == f }

// String lists the words of the set, as smaps does.
func (v VMFlags) String() string {
	var s strings.Builder
	for v != 0 {
		i := bits.TrailingZeros64(uint64(v))
		v &= v - 1
		if s.Len() > 0 {
			s.WriteByte(' ')
		}
		if i < vmFlagCount {
			s.WriteString(vmFlagWords[2*i : 2*i+2])
		} else {
			fmt.Fprintf(&s, "bit%d", i)
		}
	}
	return s.String()
}

// parseVMFlags reads the value of a line VmFlags, and gives the words that it
// does not know.
func parseVMFlags(b []byte) (v VMFlags, unknown []string) {
	for {
		w, rest := cutField(b)
		if len(w) == 0 {
			break
		}
		b = rest
		i := 0
		if len(w) == 2 {
			i = vmFlagIndex(w[0], w[1])
		}
		if i == 0 {
			unknown = append(unknown, string(w))
			continue
		}
		v |= 1 << (i - 1)
	}
	return v, unknown
}
