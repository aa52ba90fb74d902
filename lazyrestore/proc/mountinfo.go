package proc

import (
	"bytes"
	"fmt"
)

// Mount is one line of /proc/PID/mountinfo: what is mounted where. Names are in
// the kernel's words, in which blanks are octal numbers.
type Mount struct {
	Device string // "0:23"
	Root   string // directory of the file system that is mounted
	Point  string // where, seen from the process's root
	Type   string // "proc"
}

// ParseMounts reads /proc/PID/mountinfo.
func ParseMounts(b []byte) ([]Mount, error) {
	var list []Mount
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		before, after, ok := bytes.Cut(line, []byte(" - "))
		f, kind := bytes.Fields(before), bytes.Fields(after)
		if !ok || len(f) < 6 || len(kind) < 2 {
			return nil, fmt.Errorf("mountinfo: line %q: cannot be read", line)
		}
		list = append(list, Mount{string(f[2]), string(f[3]), string(f[4]), string(kind[0])})
	}
	return list, nil
}
