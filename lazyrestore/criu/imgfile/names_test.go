package imgfile

import "testing"

func TestParseFile(t *testing.T) {
	for _, c := range []struct {
		name string
		id   MemoryID
		ok   bool
	}{
		{"pagemap-1.img", OfTask(1), true},
		{"pagemap-shmem-4294967297.img", MemoryID{SharedMemory, 1<<32 + 1}, true},
		{"pagemap-01.img", MemoryID{}, false},
		{"pagemap-x.img", MemoryID{}, false},
		{"pagemap-1", MemoryID{}, false},
		{"pages-1.img", MemoryID{}, false},
		{"pagemap-hugetlb-1.img", MemoryID{}, false},
	} {
		id, ok := ParseFile(c.name)
		if ok != c.ok || ok && id != c.id {
			t.Errorf("%s: %v, %v", c.name, id, ok)
		}
	}
}
