package native

import (
	"sync/atomic"
	"unsafe"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// result is what step i of a placed table returned, if it has returned. The
// process writes it while we look.
func (p *program) result(t *table, i int) (ret int64, done bool) {
	word := (*atomic.Int64)(unsafe.Pointer(&p.buf[t.off+(i+1)*proc.CallSize-8]))
	ret = word.Load()
	return ret, ret != proc.NotRun
}
