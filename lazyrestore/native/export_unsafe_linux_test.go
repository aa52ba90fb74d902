package native

import (
	"unsafe"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// addressOf is where b, memory of mmap(2), is.
func addressOf(b []byte) page.Addr {
	return page.Addr(uintptr(unsafe.Pointer(unsafe.SliceData(b))))
}
