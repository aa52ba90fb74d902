package native

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// A descriptor is one open descriptor as it is looked at.
type descriptor struct {
	num   int
	link  string // what /proc says it refers to
	self  string // its own path in /proc
	info  proc.FDInfo
	stat  unix.Stat_t
	first *descriptor // the lowest of the same description
	open  uint32      // index in State.Opens
}

func (d *descriptor) String() string { return fmt.Sprintf("descriptor %d (%s)", d.num, d.link) }

func (d *descriptor) flags() uint32 { return d.info.Flags &^ unix.O_CLOEXEC }

// reads and writes say what the access mode of d allows.
func (d *descriptor) reads() bool  { return d.info.Flags&unix.O_ACCMODE != unix.O_WRONLY }
func (d *descriptor) writes() bool { return d.info.Flags&unix.O_ACCMODE != unix.O_RDONLY }

// A fdTable is the descriptor table of the process.
type fdTable struct {
	list   []descriptor             // ascending
	groups map[string][]*descriptor // by link: the first of each description, in the order of kcmp
}

// number finds a descriptor.
func (t *fdTable) number(num int) *descriptor {
	i, ok := slices.BinarySearchFunc(t.list, num, func(d descriptor, num int) int { return cmp.Compare(d.num, num) })
	if !ok {
		return nil
	}
	return &t.list[i]
}

// readFDs reads the descriptor table.
func readFDs(pid int) (*fdTable, error) {
	links, err := proc.ReadFDs(pid)
	if err != nil {
		return nil, err
	}
	t := &fdTable{list: make([]descriptor, 0, len(links)), groups: make(map[string][]*descriptor)}
	for _, l := range links {
		d := descriptor{num: l.FD, link: l.Target, self: fmt.Sprintf("/proc/%d/fd/%d", pid, l.FD)}
		if d.info, err = proc.ReadFDInfo(pid, l.FD); err != nil {
			return nil, err
		}
		if err := unix.Stat(d.self, &d.stat); err != nil {
			return nil, fmt.Errorf("stat %s: %w", d.self, err)
		}
		t.list = append(t.list, d)
	}
	return t, t.group(pid)
}

// group finds the descriptors that share a description (by dup or by
// inheritance): only those of one name can. Many of a name are put into the
// kernel's order, in which the same are neighbours.
func (t *fdTable) group(pid int) error {
	all := make(map[string][]*descriptor)
	for i := range t.list {
		d := &t.list[i]
		all[d.link] = append(all[d.link], d)
	}
	for link, ds := range all {
		var failed error
		order := func(a, b *descriptor) int {
			n, err := proc.CompareFiles(pid, a.num, pid, b.num)
			if err != nil && failed == nil {
				failed = err
			}
			return cmp.Or(n, cmp.Compare(a.num, b.num))
		}
		slices.SortFunc(ds, order)
		for i, d := range ds {
			d.first = d
			if i == 0 {
				continue
			}
			n, err := proc.CompareFiles(pid, ds[i-1].num, pid, d.num)
			if err != nil && failed == nil {
				failed = err
			}
			if n == 0 {
				d.first = ds[i-1].first
			}
		}
		if failed != nil {
			return failed
		}
		t.groups[link] = slices.DeleteFunc(ds, func(d *descriptor) bool { return d.first != d })
	}
	return nil
}

// descriptors reads the descriptor table. Descriptors that share a description
// share an Open.
func (c *capture) descriptors() error {
	var err error
	if c.fds, err = readFDs(c.pid); err != nil {
		return err
	}
	for i := range c.fds.list {
		d := &c.fds.list[i]
		if d.first == d {
			d.open = uint32(len(c.st.Opens))
			if err := c.describe(d); err != nil {
				return err
			}
			if err := c.attached(d); err != nil {
				return err
			}
		}
		d.open = d.first.open
		c.st.FDs = append(c.st.FDs, FD{Num: d.num, Open: d.open, CloExec: d.info.Flags&unix.O_CLOEXEC != 0})
	}
	c.noteDisplaced()
	c.notePairs()
	return c.terminalModes()
}

// describe appends the Open of d, or the reason why there is none.
func (c *capture) describe(d *descriptor) error {
	for _, l := range d.info.Unknown {
		c.refused.add(d.String(), "it has state that is not preserved: "+l, "close it for the checkpoint")
	}
	o := Open{Path: d.link, Flags: d.flags(), Offset: d.info.Pos}
	mode, why := d.stat.Mode&unix.S_IFMT, ""
	if mode == unix.S_IFREG {
		kind, err := c.fileSystem(d.stat.Dev, d.self)
		if err != nil {
			return err
		}
		why = unreadable(kind)
	}
	var err error
	switch {
	case why != "":
		c.refused.add(d.String(), why, "close it for the checkpoint, or: "+helpCRIU)
	case strings.HasPrefix(d.link, "/proc/") && (mode == unix.S_IFREG || mode == unix.S_IFDIR):
		c.refuseWrites(d)
		c.describeProc(d, &o)
	case mode == unix.S_IFREG && removed(d.link, &d.stat):
		err = c.describeDeleted(d, &o)
	case mode == unix.S_IFREG || mode == unix.S_IFDIR || d.flags()&unix.O_PATH != 0:
		err = c.describeFile(d, &o) // of whatever type: with O_PATH it is no more than its path
	case mode == unix.S_IFCHR:
		c.describeDevice(d, &o)
	case mode == unix.S_IFIFO:
		err = c.describePipe(d, &o)
	case mode == unix.S_IFSOCK:
		err = c.describeSocket(d, &o)
	case strings.HasPrefix(d.link, "anon_inode:"):
		err = c.describeAnon(d, &o)
	default:
		c.describeStdio(d, &o, "descriptors of this type are not preserved")
	}
	c.st.Opens = append(c.st.Opens, o)
	return err
}

// attached takes what any description may have beside its file.
func (c *capture) attached(d *descriptor) error {
	if c.st.Opens[d.open].Kind == OpenStdio {
		return nil
	}
	c.locks(d)
	if d.flags()&unix.O_PATH != 0 {
		return nil
	}
	return c.owner(d)
}

// withFD runs f on a descriptor of ours for the description of d.
func (c *capture) withFD(d *descriptor, f func(fd int) error) error {
	fd, err := proc.GetFD(c.pid, d.num)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return f(fd)
}

// describeAnon tells descriptors that have no file.
func (c *capture) describeAnon(d *descriptor, o *Open) error {
	switch d.link {
	case "anon_inode:[eventfd]":
		c.describeEventFD(d, o)
	case "anon_inode:[eventpoll]":
		return c.describeEpoll(d, o)
	case "anon_inode:[timerfd]":
		return c.describeTimerFD(d, o)
	case "anon_inode:[signalfd]":
		o.Kind, o.Count = OpenSignalFD, d.info.SigMask
	case "anon_inode:inotify":
		return c.describeInotify(d, o)
	default:
		c.refused.add(d.String(), "descriptors of this type are not preserved", "close it for the checkpoint, or: "+helpCRIU)
	}
	return nil
}

func (c *capture) describeFile(d *descriptor, o *Open) error {
	o.Kind = OpenFile
	o.File = Mapped{Path: d.link, Size: d.stat.Size, MTime: d.stat.Mtim.Nano()}
	if strings.HasPrefix(d.link, "/sys/") {
		// What is read there is made at each reading: nothing to compare.
		o.Kind = OpenDevice
		c.refuseWrites(d)
	}
	if why := astray(d.link, &d.stat); why != "" {
		c.refused.add(d.String(), why, "close it for the checkpoint")
		return nil
	}
	if d.flags()&unix.O_PATH != 0 {
		return nil
	}
	return c.memoryFile(d.link, d.self, &d.stat, d.writes(), false)
}

// refuseWrites refuses a file of the kernel's own file systems that is open for writing.
func (c *capture) refuseWrites(d *descriptor) {
	if d.writes() {
		c.refused.add(d.String(), "it writes to the kernel's own file systems", "close it for the checkpoint")
	}
}

// Device numbers without state: any open of one is as good as any other.
var statelessDevices = map[uint64]bool{
	unix.Mkdev(1, 3): true, // null
	unix.Mkdev(1, 5): true, // zero
	unix.Mkdev(1, 7): true, // full
	unix.Mkdev(1, 8): true, // random
	unix.Mkdev(1, 9): true, // urandom
}

func (c *capture) describeDevice(d *descriptor, o *Open) {
	if statelessDevices[d.stat.Rdev] {
		o.Kind = OpenDevice
		return
	}
	if c.onTerminal(d) && d.num > 2 {
		o.Kind = OpenTerminal
		return
	}
	c.describeStdio(d, o, "the state of this device is not preserved")
}

// describeStdio lets descriptors 0 to 2 become the restoring command's own,
// and refuses all others.
func (c *capture) describeStdio(d *descriptor, o *Open, why string) {
	if d.num <= 2 {
		o.Kind, o.Stdio = OpenStdio, uint32(d.num)
		return
	}
	c.refused.add(d.String(), why, "close it for the checkpoint, or: "+helpCRIU)
}
