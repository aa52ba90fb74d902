package native

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// What can be set in no other way than by a file of /proc is written by us, to
// the new process. Nothing is, where it has inherited the same.

// readProc looks what it inherits. What cannot be read differs from all.
func (b *builder) readProc() {
	var err error
	if b.ownOOM, err = proc.ReadOOMScoreAdj(unix.Getpid()); err != nil {
		b.ownOOM = -1 << 63
	}
	if filter, err := proc.ReadCoreFilter(unix.Getpid()); err == nil {
		b.ownFilter = filter + 1
	}
}

// writeProc writes what differs; what cannot be written is a warning.
func (b *builder) writeProc() {
	if b.st.OOMScore != b.ownOOM {
		b.writeFile("oom_score_adj", strconv.FormatInt(b.st.OOMScore, 10))
	}
	if f := b.st.CoreFilter; f != 0 && f != b.ownFilter {
		b.writeFile("coredump_filter", "0x"+strconv.FormatUint(f-1, 16))
	}
}

func (b *builder) writeFile(name, value string) {
	if err := os.WriteFile("/proc/"+strconv.Itoa(b.pid)+"/"+name, []byte(value), 0); err != nil {
		b.re.warnings = append(b.re.warnings, fmt.Sprintf("%s is not %s as it was: %v", name, value, err))
	}
}
