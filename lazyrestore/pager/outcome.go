package pager

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd"
)

// memory is what an install does to an address space; *uffd.FD is one.
type memory interface {
	Copy(dst uint64, src []byte, mode uffd.CopyMode) (int64, error)
	CopyNow(dst uint64, src []byte, mode uffd.CopyMode) (int64, error)
	ZeroNow(start, length uint64, mode uffd.CopyMode) (int64, error)
	Poison(start, length uint64, mode uffd.CopyMode) (int64, error)
	Wake(start, length uint64) error
}

// An outcome is what an errno of UFFDIO_COPY, ZEROPAGE and POISON means to us.
type outcome uint8

const (
	there   outcome = iota // nil: the pages are there now
	present                // EEXIST: the first page was there before; nobody is woken
	again                  // EAGAIN: the address space is changing: read events, look again, retry
	gone                   // ENOENT: not registered, or not in one mapping, or about to be elsewhere (see apply), or past the end (see orderly)
	dead                   // ESRCH: the process, or this memory of it, is gone
	full                   // ENOMEM, ENOSPC: no memory now: retry later
	broken                 // anything else is a mistake of ours
)

func outcomeOf(err error) outcome {
	switch {
	case err == nil:
		return there
	case errors.Is(err, unix.EEXIST):
		return present
	case errors.Is(err, unix.EAGAIN):
		return again
	case errors.Is(err, unix.ENOENT):
		return gone
	case errors.Is(err, unix.ESRCH):
		return dead
	case errors.Is(err, unix.ENOMEM), errors.Is(err, unix.ENOSPC):
		return full
	}
	return broken
}

// An operation puts something into the range of n bytes from dst on, off bytes
// after where the whole began, and returns how many bytes it did.
type operation func(dst page.Addr, off, n int) (int64, error)

// apply runs op over n bytes from dst on until all pages are dealt with or
// something stands in the way. settled is called for each part that needs no
// more: filled, there before, or no longer registered. pageSize is the
// mapping's. The outcome is there, again, dead, full or broken, the last with
// the error.
func apply(mem memory, dst page.Addr, n, pageSize int, op operation, settled func(off, n int, how outcome)) (outcome, error) {
	step := n
	doubt := -1 // where a page was said to be gone once
	for off := 0; off < n; {
		at := dst + page.Addr(off)
		size := min(step, n-off)
		did, err := op(at, off, size)
		if did > 0 {
			settled(off, int(did), there)
			off += int(did)
			continue // a partial count comes with EAGAIN: the rest tells why
		}
		switch out := outcomeOf(err); out {
		case there:
			return broken, errors.New("nothing was done, and no error given")
		case present:
			// Whoever put it there has woken those who waited then, not those
			// who came between.
			_ = mem.Wake(uint64(at), uint64(pageSize))
			settled(off, pageSize, present)
			off += pageSize
		case gone:
			// A mapping that the process has split by mprotect or madvise is
			// filled in parts; a page alone is really gone.
			if size > pageSize {
				step = max(size/2/pageSize*pageSize, pageSize)
				continue
			}
			// The kernel looks for changes of the address space first and for the
			// mapping then (since Linux 6.9), so that a page which is being moved
			// in between is said to be gone. Asked again it says EAGAIN, until the
			// event is read that tells where the page is now.
			if doubt != off {
				doubt = off
				continue
			}
			_ = mem.Wake(uint64(at), uint64(pageSize)) // who waits here waits for nothing
			settled(off, pageSize, gone)
			off += pageSize
			step = n
		default:
			return out, err
		}
	}
	return there, nil
}
