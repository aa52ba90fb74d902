package pager

// cloneKeeper makes the child with the page it is to keep; see
// keeper_linux_amd64.s. It returns the child's id or a negated errno.
//
//go:noescape
func cloneKeeper(page, maxFD uintptr) (pid uintptr)

// keeperCode is where the child's code begins and ends.
//
//go:noescape
func keeperCode() (start, end uintptr)
