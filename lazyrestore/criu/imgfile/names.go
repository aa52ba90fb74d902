package imgfile

import (
	"os"
	"slices"
	"strconv"
	"strings"
)

// ParseFile is the memory whose pagemap has that name.
func ParseFile(name string) (id MemoryID, ok bool) {
	number, ok := strings.CutPrefix(name, "pagemap-")
	if !ok {
		return id, false
	}
	id.Kind = TaskMemory
	if rest, shared := strings.CutPrefix(number, "shmem-"); shared {
		id.Kind, number = SharedMemory, rest
	}
	number, ok = strings.CutSuffix(number, ".img")
	if !ok {
		return MemoryID{}, false
	}
	var err error
	id.ID, err = strconv.ParseUint(number, 10, 64)
	return id, err == nil && id.File() == name
}

// Memories is all tasks and shared memory objects that the set has a pagemap of.
func (d *Dir) Memories() ([]MemoryID, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, err
	}
	var ids []MemoryID
	for _, e := range entries {
		if id, ok := ParseFile(e.Name()); ok {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b MemoryID) int {
		if a.Kind != b.Kind {
			return int(a.Kind) - int(b.Kind)
		}
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	return ids, nil
}
