package native

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// A process may have so many mappings and no more (vm.max_map_count). A lazy
// range that is a part of its mapping splits it while it is registered.

// spareMappings are what a restore has beside the process's own: the program,
// the eager pages, vDSO and vvar, and one of a split at each of its edges.
const spareMappings = 16

// mapLimit is vm.max_map_count; 0 where it cannot be read.
func mapLimit() int {
	b, err := os.ReadFile("/proc/sys/vm/max_map_count")
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0
	}
	return n
}

// mapCount is how many mappings a restored process has at most while it is
// lazy.
func (st *State) mapCount() int {
	n := len(st.VMAs) + spareMappings
	for i := range st.VMAs {
		v := &st.VMAs[i]
		for _, r := range v.Lazy {
			if r.Start > v.Start {
				n++
			}
			if r.End < v.End {
				n++
			}
		}
	}
	return n
}

// boundMappings sees to it that the lazy ranges leave the process room for
// mappings of its own: where they would not, they become whole mappings. A
// process so close to the limit that it could not be restored is refused.
func (k *content) boundMappings(limit int) {
	st := k.c.st
	if limit == 0 || st.mapCount() <= limit/2 {
		return
	}
	for i := range st.VMAs {
		if v := &st.VMAs[i]; len(v.Lazy) > 0 {
			v.Lazy = []page.Range{st.withContent(v)}
		}
	}
	if n := st.mapCount(); n > limit {
		k.c.refused.add(fmt.Sprintf("%d mappings", len(st.VMAs)), fmt.Sprintf("a restore needs %d, and the limit is %d", n, limit), "raise vm.max_map_count with sysctl")
	}
}

// mapCount refuses a place where the process would have too many mappings.
func (r *reopener) mapCount() {
	n := r.st.mapCount()
	if n < 30000 {
		return // the usual limit is above 65,000
	}
	if limit := mapLimit(); limit > 0 && n > limit {
		r.refused.add(fmt.Sprintf("%d mappings", len(r.st.VMAs)), fmt.Sprintf("the restore needs %d, and the limit here is %d", n, limit), "raise vm.max_map_count with sysctl")
	}
}
