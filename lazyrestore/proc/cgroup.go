package proc

import (
	"bytes"
	"fmt"
)

// Cgroup is one line of /proc/PID/cgroup: where a process is in one hierarchy.
type Cgroup struct {
	ID          int
	Controllers string // empty in the unified hierarchy (version 2)
	Path        string
}

// ParseCgroups reads /proc/PID/cgroup.
func ParseCgroups(b []byte) ([]Cgroup, error) {
	var list []Cgroup
	n := number{what: "cgroup"}
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		id, rest, ok1 := bytes.Cut(line, []byte(":"))
		names, path, ok2 := bytes.Cut(rest, []byte(":"))
		if !ok1 || !ok2 {
			return nil, fmt.Errorf("cgroup: line %q: cannot be read", line)
		}
		list = append(list, Cgroup{n.int("hierarchy", id), string(names), string(path)})
	}
	return list, n.err
}
