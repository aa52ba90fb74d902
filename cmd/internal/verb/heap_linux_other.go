//go:build linux && !amd64

package verb

func populateBeside(addr, n uintptr) {}
