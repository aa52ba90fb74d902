package verb

// populateBeside has a thread that Go does not know of make the pages of n bytes at addr,
// as far as there is memory, and end. With a goroutine nothing was gained.
//
//go:noescape
func populateBeside(addr, n uintptr)
