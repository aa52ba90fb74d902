package proc

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// ReadMapsIn lists the mappings of a process that have something of r, with what they show of which file, but not its name. The
// kernel tells of these alone since Linux 6.11; before, all are read.
func ReadMapsIn(pid int, r page.Range) ([]VMA, error) {
	vmas, err := queryMaps(pid, r)
	if errors.Is(err, unix.ENOTTY) {
		vmas, err = readMapsIn(pid, r)
	}
	return vmas, err
}

func queryMaps(pid int, r page.Range) ([]VMA, error) {
	path := pathOf(pid, "maps")
	fd, err := open(path, unix.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd)
	var vmas []VMA
	for r.Start < r.End {
		v, err := queryMap(fd, r.Start)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOENT), err == nil && v.Start >= r.End:
			return vmas, nil
		case err != nil:
			return nil, fmt.Errorf("ask %s: %w", path, err)
		}
		vmas = append(vmas, v)
		r.Start = v.End
	}
	return vmas, nil
}

func readMapsIn(pid int, r page.Range) (in []VMA, err error) {
	vmas, err := ReadMaps(pid)
	for i := range vmas {
		if vmas[i].Overlaps(r) {
			in = append(in, vmas[i])
		}
	}
	return in, err
}
