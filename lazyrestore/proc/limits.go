package proc

import (
	"bytes"
	"fmt"
)

// Unlimited is the value of a limit that is none: RLIM_INFINITY.
const Unlimited = ^uint64(0)

// Limit is one resource limit, soft and hard.
type Limit struct{ Cur, Max uint64 }

// Limits are the limits of a process; the index is the number of the resource
// (RLIMIT_CPU is 0).
type Limits [16]Limit

// limitNames are the kernel's names of the resources, fs/proc/base.c.
var limitNames = [16]string{
	"Max cpu time", "Max file size", "Max data size", "Max stack size", "Max core file size",
	"Max resident set", "Max processes", "Max open files", "Max locked memory", "Max address space",
	"Max file locks", "Max pending signals", "Max msgqueue size", "Max nice priority",
	"Max realtime priority", "Max realtime timeout",
}

// ParseLimits reads /proc/PID/limits. A resource that is not known, and one
// that is missing, is an error.
func ParseLimits(b []byte) (Limits, error) {
	var l Limits
	var seen uint32
	n := number{what: "limits"}
	head, b := cutLine(b)
	if !bytes.HasPrefix(head, []byte("Limit ")) {
		return l, fmt.Errorf("limits: unknown heading %q", head)
	}
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		i := 0
		for i < len(limitNames) && !bytes.HasPrefix(line, []byte(limitNames[i]+" ")) {
			i++
		}
		if i == len(limitNames) {
			return l, fmt.Errorf("limits: unknown line %q", line)
		}
		cur, rest := cutField(line[len(limitNames[i]):])
		hard, _ := cutField(rest)
		l[i] = Limit{n.limit(limitNames[i], cur), n.limit(limitNames[i], hard)}
		seen |= 1 << i
	}
	if n.err == nil && seen != 1<<16-1 {
		n.err = fmt.Errorf("limits: not all of the resources are listed (%#x)", seen)
	}
	return l, n.err
}

func (n *number) limit(name string, b []byte) uint64 {
	if string(b) == "unlimited" {
		return Unlimited
	}
	return n.uint(name, b, 10)
}
