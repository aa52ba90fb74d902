package pager

import (
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// cloneKeeper makes the child with the page it is to keep; see
// keeper_linux_amd64.s. It returns the child's id or a negated errno.
//
//go:noescape
func cloneKeeper(page, maxFD uintptr) (pid uintptr)

// keeper is what the child does, which never returns.
//
//go:noescape
func keeper() //nolint:unused // assembler goes there

// enter is where an executable may be entered, before Go begins; see Keeper.
//
//go:noescape
func enter() //nolint:unused // the linker is told of it

// enteredKeeper is the id of the keeper that enter has started; 0 or below: none.
//
//go:noescape
func enteredKeeper() (pid int)

// enteredSlack is the timer slack that enter has found and made longer; 0: it has not.
//
//go:noescape
func enteredSlack() (ns uint64)

// keeperCode is where the child's code begins and ends.
//
//go:noescape
func keeperCode() (start, end uintptr)

// arch_prctl(2): ARCH_GET_FS of asm/prctl.h.
const archGetFS = 0x1003

// threadPointer is the thread pointer of the calling thread, or zero.
func threadPointer() page.Addr {
	var fs uint64
	if errno := archPrctl(archGetFS, &fs); errno != 0 {
		return 0
	}
	return page.Addr(fs)
}
