//go:build !amd64

package pager

import (
	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// The keeper's code exists for x86-64 alone.

func cloneKeeper(_, _ uintptr) uintptr { return ^uintptr(unix.ENOSYS) + 1 }

func enteredKeeper() int { return 0 }

func enteredSlack() uint64 { return 0 }

func keeperCode() (start, end uintptr) { return 0, 0 }

func threadPointer() page.Addr { return 0 }
