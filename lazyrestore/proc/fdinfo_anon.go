package proc

import (
	"bytes"
	"encoding/hex"
	"fmt"
)

// TimerFD is the state of a timerfd. Times are seconds and nanoseconds.
type TimerFD struct {
	Clock    int    // of clock_gettime(2)
	Ticks    uint64 // expirations not read yet
	Flags    uint32 // of timerfd_settime(2)
	Value    [2]uint64
	Interval [2]uint64
}

// InotifyWatch is one watch of an inotify descriptor.
type InotifyWatch struct {
	WD         int
	Inode      uint64
	Dev        uint64 // the kernel's number of the file system's device
	Mask       uint32
	HandleType int32
	Handle     []byte // of open_by_handle_at(2); empty where the file system has none
}

// anon reads a line of a descriptor without a file, of which the keys differ
// by kind; false where it is not known.
func (f *FDInfo) anon(key, v []byte, n *number) (known bool) {
	switch string(key) {
	case "clockid":
		f.IsTimerFD, f.Timer.Clock = true, n.int("clockid", v)
	case "ticks":
		f.Timer.Ticks = n.uint("ticks", v, 10)
	case "settime flags":
		f.Timer.Flags = n.uint32("settime flags", v, 8)
	case "it_value":
		f.Timer.Value = n.pair("it_value", v)
	case "it_interval":
		f.Timer.Interval = n.pair("it_interval", v)
	case "sigmask":
		f.IsSignalFD, f.SigMask = true, n.uint("sigmask", v, 16)
	case "scm_fds":
		return string(v) == "0" // descriptors that are queued in a unix socket
	default:
		return false
	}
	return true
}

// pair reads "(1, 2)".
func (n *number) pair(name string, b []byte) (p [2]uint64) {
	inner, ok1 := bytes.CutPrefix(b, []byte("("))
	inner, ok2 := bytes.CutSuffix(inner, []byte(")"))
	one, two, ok3 := bytes.Cut(inner, []byte(", "))
	if !ok1 || !ok2 || !ok3 {
		n.fail(name, b)
		return p
	}
	return [2]uint64{n.uint(name, one, 10), n.uint(name, two, 10)}
}

// inotifyWatch reads a line of inotify_show_fdinfo in the kernel's
// fs/notify/fdinfo.c; false where a field of it is not known:
//
//	inotify wd:1 ino:3c4a3 sdev:fe00000 mask:120 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:a3c4030000000000
func (f *FDInfo) inotifyWatch(rest []byte) (known bool, err error) {
	var w InotifyWatch
	n := number{what: "fdinfo: inotify watch"}
	size, seen := -1, 0
	for {
		var field []byte
		field, rest = cutField(rest)
		if len(field) == 0 {
			break
		}
		key, v, ok := cutKey(field)
		if !ok {
			return false, nil
		}
		switch string(key) {
		case "wd":
			w.WD, seen = int(n.uint32("wd", v, 16)), seen|1
		case "ino":
			w.Inode, seen = n.uint("ino", v, 16), seen|2
		case "sdev":
			w.Dev, seen = n.uint("sdev", v, 16), seen|4
		case "mask":
			w.Mask, seen = n.uint32("mask", v, 16), seen|8
		case "ignored_mask":
			if string(v) != "0" {
				return false, nil
			}
		case "fhandle-bytes":
			size = int(n.uint32("fhandle-bytes", v, 16))
		case "fhandle-type":
			w.HandleType = int32(n.uint32("fhandle-type", v, 16))
		case "f_handle":
			if w.Handle, err = hex.DecodeString(string(v)); err != nil {
				return false, fmt.Errorf("fdinfo: inotify watch: handle %q: %w", v, err)
			}
		default:
			return false, nil
		}
	}
	if n.err != nil {
		return false, n.err
	}
	if seen != 15 || size >= 0 && size > len(w.Handle) {
		return false, nil
	}
	if size >= 0 {
		w.Handle = w.Handle[:size]
	}
	f.Inotify = append(f.Inotify, w)
	return true, nil
}
