package proc

import (
	"path"
	"strings"
)

// MemoryHeadroom is how many more bytes of memory a process's control groups
// allow it, the least of all groups from its own to the root; limited is false
// where no group sets a limit, or none can be read. Page cache that was used
// lately counts as used, although the kernel would give it back: the answer is
// on the safe side.
func MemoryHeadroom(pid int) (bytes uint64, limited bool, err error) {
	groups, err := ReadCgroups(pid)
	if err != nil {
		return 0, false, err
	}
	bytes = Unlimited
	for _, g := range groups {
		switch {
		case g.Controllers == "":
			for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
				bytes = min(bytes, headroom(root, g.Path, "memory.max", "memory.current"))
			}
		case strings.Contains(","+g.Controllers+",", ",memory,"):
			bytes = min(bytes, headroom("/sys/fs/cgroup/memory", g.Path, "memory.limit_in_bytes", "memory.usage_in_bytes"))
		}
	}
	return bytes, bytes != Unlimited, nil
}

// noLimit is where version 1's way of saying "no limit" begins: the largest
// number of pages that fits, in bytes.
const noLimit = 1 << 62

// headroom is the least of limit less use, of a group and all above it.
func headroom(root, group, limitFile, usageFile string) uint64 {
	least := uint64(Unlimited)
	for dir := path.Join(root, path.Clean("/"+group)); strings.HasPrefix(dir, root); dir = path.Dir(dir) {
		if limit, ok := readAmount(path.Join(dir, limitFile)); ok && limit < noLimit {
			if usage, ok := readAmount(path.Join(dir, usageFile)); ok {
				usage -= min(usage, pageCache(dir))
				least = min(least, limit-min(limit, usage))
			}
		}
		if dir == root {
			break
		}
	}
	return least
}

// pageCache is how much of a group's use is clean page cache at rest, which
// the kernel gives back to whoever needs memory.
func pageCache(dir string) uint64 {
	b, err := readPath(path.Join(dir, "memory.stat"), nil)
	if err != nil {
		return 0
	}
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		key, value := cutField(line)
		if name := string(key); name == "inactive_file" || name == "total_inactive_file" {
			n, _ := parseUint(trim(value), 10)
			return n
		}
	}
	return 0
}

// readAmount reads a file that holds a number of bytes, or "max".
func readAmount(name string) (uint64, bool) {
	b, err := readPath(name, nil)
	if err != nil {
		return 0, false
	}
	line, _ := cutLine(b)
	if string(line) == "max" {
		return Unlimited, true
	}
	return parseUint(line, 10)
}
