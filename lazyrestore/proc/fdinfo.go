package proc

import (
	"bytes"
	"errors"
	"fmt"
)

// FDInfo is what /proc/PID/fdinfo says about one descriptor.
type FDInfo struct {
	Pos   int64
	Flags uint32 // O_ bits; O_CLOEXEC belongs to the descriptor, not the description
	MntID int
	Inode uint64

	IsEventFD    bool
	EventCount   uint64
	EventFDID    int
	EventFDSem   bool // EFD_SEMAPHORE
	HasSemaphore bool // the kernel said so (Linux 6.5); else EventFDSem is not known

	IsTimerFD  bool
	Timer      TimerFD
	IsSignalFD bool
	SigMask    uint64

	Epoll   []EpollTarget
	Inotify []InotifyWatch
	Locks   []string // locks held through this description, in the words of /proc/locks

	Unknown []string // all other lines
}

// EpollTarget is one descriptor that an epoll instance watches.
type EpollTarget struct {
	FD     int // at the time it was added
	Events uint32
	Data   uint64
	Pos    int64
	Inode  uint64
	Dev    uint64 // the kernel's number of the file system's device
}

// ParseFDInfo reads a file of /proc/PID/fdinfo.
func ParseFDInfo(b []byte) (FDInfo, error) {
	var f FDInfo
	n := number{what: "fdinfo"}
	seen := 0
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		key, v, ok := cutKey(line)
		if !ok {
			f.Unknown = append(f.Unknown, string(line))
			continue
		}
		switch string(key) {
		case "pos":
			pos, ok := parseInt(v)
			if !ok {
				n.fail("pos", v)
			}
			f.Pos, seen = pos, seen|1
		case "flags":
			f.Flags, seen = n.uint32("flags", v, 8), seen|2
		case "mnt_id":
			f.MntID = n.int("mnt_id", v)
		case "ino":
			f.Inode = n.uint("ino", v, 10)
		case "eventfd-count":
			f.EventCount, f.IsEventFD = n.uint("eventfd-count", v, 16), true
		case "eventfd-id":
			f.EventFDID = n.int("eventfd-id", v)
		case "eventfd-semaphore":
			f.EventFDSem, f.HasSemaphore = n.uint("eventfd-semaphore", v, 10) != 0, true
		case "tfd":
			if err := f.epollTarget(line); err != nil {
				return f, err
			}
		case "inotify wd":
			known, err := f.inotifyWatch(line[len("inotify "):])
			if err != nil {
				return f, err
			}
			if !known {
				f.Unknown = append(f.Unknown, string(line))
			}
		case "lock":
			f.Locks = append(f.Locks, string(v))
		default:
			if !f.anon(key, v, &n) {
				f.Unknown = append(f.Unknown, string(line))
			}
		}
	}
	if n.err == nil && seen != 3 {
		n.err = errors.New("fdinfo: no lines pos and flags")
	}
	return f, n.err
}

// epollTarget reads a line of ep_show_fdinfo in the kernel's fs/eventpoll.c:
//
//	tfd:        5 events:       19 data:                5  pos:0 ino:61 sdev:5
func (f *FDInfo) epollTarget(line []byte) error {
	var t EpollTarget
	n := number{what: "fdinfo: epoll target"}
	seen := 0
	for rest := line; ; {
		var key, v []byte
		rest = trim(rest)
		if len(rest) == 0 {
			break
		}
		i := bytes.IndexByte(rest, ':')
		if i < 0 {
			return fmt.Errorf("fdinfo: epoll target %q: cannot be read", line)
		}
		key = rest[:i]
		v, rest = cutField(rest[i+1:])
		switch string(key) {
		case "tfd":
			t.FD, seen = n.int("tfd", v), seen|1
		case "events":
			t.Events, seen = n.uint32("events", v, 16), seen|2
		case "data":
			t.Data, seen = n.uint("data", v, 16), seen|4
		case "pos":
			pos, ok := parseInt(v)
			if !ok {
				n.fail("pos", v)
			}
			t.Pos = pos
		case "ino":
			t.Inode = n.uint("ino", v, 16)
		case "sdev":
			t.Dev = n.uint("sdev", v, 16)
		default:
			f.Unknown = append(f.Unknown, string(line))
			return nil
		}
	}
	if n.err != nil {
		return n.err
	}
	if seen != 7 {
		return fmt.Errorf("fdinfo: epoll target %q: tfd, events or data is missing", line)
	}
	f.Epoll = append(f.Epoll, t)
	return nil
}
