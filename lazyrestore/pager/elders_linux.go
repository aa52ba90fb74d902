package pager

import (
	"os"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// Elders are the processes that began before this one. None of them shares the memory of a forked child that it serves: the kernel
// notes when a child begins once it has been read that there is one, and shares its memory with none but those it makes.
type elders struct {
	none  bool   // is known to be one
	began uint64 // this process, in clock ticks since boot
	known map[int]begin
}

// A begin is when a process began. Its id may be another's by now, but the inode of its directory in /proc is not.
type begin struct{ inode, ticks uint64 }

// others lists all processes that are none, but this one.
func (e *elders) others() (pids []int, err error) {
	if e.began == 0 && !e.none {
		if e.began, err = beganItself(); err != nil {
			return nil, err
		}
	}
	all, err := proc.ReadProcessEntries()
	known := make(map[int]begin, len(all))
	for _, p := range all {
		b := e.known[p.PID]
		if b.inode != p.Inode && !e.none {
			b = begin{p.Inode, e.began} // of which it cannot be seen
			stat, err := proc.ReadStat(p.PID)
			if err == nil {
				b.ticks = stat.StartTime
			} else if noRoom(err) {
				return nil, err
			}
		}
		known[p.PID] = b
		if b.ticks >= e.began && p.PID != os.Getpid() {
			pids = append(pids, p.PID)
		}
	}
	e.known = known
	return pids, err
}

// beganItself is when this process began, whatever id it has in /proc.
func beganItself() (uint64, error) {
	b, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return 0, err
	}
	stat, err := proc.ParseStat(b)
	return stat.StartTime, err
}
