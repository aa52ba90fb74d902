package native

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// A descriptor is one open descriptor as it is looked at.
type descriptor struct {
	num  int
	link string // what /proc says it refers to
	self string // its own path in /proc
	info proc.FDInfo
	stat unix.Stat_t
}

func (d *descriptor) String() string { return fmt.Sprintf("descriptor %d (%s)", d.num, d.link) }

func (d *descriptor) flags() uint32 { return d.info.Flags &^ unix.O_CLOEXEC }

// descriptors reads the descriptor table. Descriptors that share a description
// (by dup or by inheritance) share an Open.
func (c *capture) descriptors() error {
	links, err := proc.ReadFDs(c.pid)
	if err != nil {
		return err
	}
	ds := make([]descriptor, 0, len(links))
	for _, l := range links {
		d := descriptor{num: l.FD, link: l.Target, self: fmt.Sprintf("/proc/%d/fd/%d", c.pid, l.FD)}
		if d.info, err = proc.ReadFDInfo(c.pid, l.FD); err != nil {
			return err
		}
		if err := unix.Stat(d.self, &d.stat); err != nil {
			return fmt.Errorf("stat %s: %w", d.self, err)
		}
		ds = append(ds, d)
	}
	first := make(map[string][]int) // by link: the first descriptor of each description
	index := make(map[int]uint32)
	for i := range ds {
		d := &ds[i]
		open, shared, err := c.sharedWith(d, first[d.link], index)
		if err != nil {
			return err
		}
		if !shared {
			open = uint32(len(c.st.Opens))
			first[d.link] = append(first[d.link], d.num)
			index[d.num] = open
			if err := c.describe(d, ds); err != nil {
				return err
			}
		}
		c.st.FDs = append(c.st.FDs, FD{Num: d.num, Open: open, CloExec: d.info.Flags&unix.O_CLOEXEC != 0})
	}
	return c.readPipes()
}

// sharedWith looks for an earlier descriptor of the same description.
func (c *capture) sharedWith(d *descriptor, earlier []int, index map[int]uint32) (uint32, bool, error) {
	for _, num := range earlier {
		same, err := proc.SameFile(c.pid, num, c.pid, d.num)
		if err != nil {
			return 0, false, fmt.Errorf("compare descriptors %d and %d: %w", num, d.num, err)
		}
		if same {
			return index[num], true, nil
		}
	}
	return 0, false, nil
}

// describe appends the Open of d, or the reason why there is none.
func (c *capture) describe(d *descriptor, all []descriptor) error {
	for _, l := range d.info.Locks {
		c.refused.add(d.String(), "it holds a file lock: "+l, "unlock it for the checkpoint")
	}
	for _, l := range d.info.Unknown {
		c.refused.add(d.String(), "it has state that is not preserved: "+l, "close it for the checkpoint")
	}
	if d.flags()&unix.O_ASYNC != 0 {
		c.refused.add(d.String(), "it sends signals (O_ASYNC)", "close it for the checkpoint")
	}
	o := Open{Path: d.link, Flags: d.flags(), Offset: d.info.Pos}
	switch mode := d.stat.Mode & unix.S_IFMT; {
	case mode == unix.S_IFREG && (d.stat.Nlink == 0 || strings.HasSuffix(d.link, deletedSuffix)):
		c.describeDeleted(d, &o)
	case mode == unix.S_IFREG || mode == unix.S_IFDIR:
		c.describeFile(d, &o)
	case mode == unix.S_IFCHR:
		c.describeDevice(d, &o)
	case mode == unix.S_IFIFO:
		c.describePipe(d, &o, all)
	case strings.HasPrefix(d.link, "anon_inode:"):
		c.describeAnon(d, &o, all)
	default:
		c.describeStdio(d, &o, "descriptors of this type are not preserved")
	}
	c.st.Opens = append(c.st.Opens, o)
	return nil
}

func (c *capture) describeFile(d *descriptor, o *Open) {
	o.Kind = OpenFile
	o.File = Mapped{Path: d.link, Size: d.stat.Size, MTime: d.stat.Mtim.Nano()}
	if strings.HasPrefix(d.link, "/proc/") || strings.HasPrefix(d.link, "/sys/") {
		// What is read there is made at each reading: nothing to compare.
		o.Kind = OpenDevice
		if o.Flags&unix.O_ACCMODE != unix.O_RDONLY {
			c.refused.add(d.String(), "it writes to the kernel's own file systems", "close it for the checkpoint")
		}
	}
	var named unix.Stat_t
	if err := unix.Stat(d.link, &named); err != nil {
		c.refused.add(d.String(), "its path leads nowhere: "+err.Error(), "close it for the checkpoint")
		return
	}
	if named.Ino != d.stat.Ino || named.Dev != d.stat.Dev {
		c.refused.add(d.String(), "its path leads to another file now", "close it for the checkpoint")
	}
}

// describeDeleted takes the content of a file without a name into the image.
func (c *capture) describeDeleted(d *descriptor, o *Open) {
	o.Kind, o.Size = OpenDeleted, uint64(d.stat.Size)
	obj := c.object(objectID{d.stat.Dev, d.stat.Ino}, strings.TrimSuffix(d.link, deletedSuffix), d.self, uint64(d.stat.Size))
	obj.descriptors++
	o.Shared = obj.index + 1
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

// describePipe tells a pipe of the process's own, both of whose ends are among
// its descriptors, or whose other end nobody has, from one to the outside.
func (c *capture) describePipe(d *descriptor, o *Open, all []descriptor) {
	if !strings.HasPrefix(d.link, "pipe:") {
		c.refused.add(d.String(), "FIFOs by name are not preserved", "close it for the checkpoint")
		return
	}
	reads := o.Flags&unix.O_ACCMODE == unix.O_RDONLY
	own := slices.ContainsFunc(all, func(e descriptor) bool {
		return e.link == d.link && (e.flags()&unix.O_ACCMODE == unix.O_RDONLY) != reads
	})
	if !own && !c.otherEndGone(d, reads) {
		c.describeStdio(d, o, "its other end is in another process")
		return
	}
	o.Kind, o.Pipe = OpenPipe, d.stat.Ino
}

func (c *capture) otherEndGone(d *descriptor, reads bool) bool {
	fd, err := proc.GetFD(c.pid, d.num)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	p := []unix.PollFd{{Fd: int32(fd)}}
	if _, err := unix.Poll(p, 0); err != nil {
		return false
	}
	if reads {
		return p[0].Revents&unix.POLLHUP != 0
	}
	return p[0].Revents&unix.POLLERR != 0
}

// readPipes takes a copy of what is in each pipe, without reading it.
func (c *capture) readPipes() error {
	done := make(map[uint64]bool)
	for i, f := range c.st.FDs {
		o := &c.st.Opens[f.Open]
		if o.Kind != OpenPipe || o.Flags&unix.O_ACCMODE != unix.O_RDONLY || done[o.Pipe] {
			continue
		}
		done[o.Pipe] = true
		var err error
		if o.Data, o.Size, err = proc.CopyPipe(c.pid, c.st.FDs[i].Num); err != nil {
			return fmt.Errorf("copy the content of pipe %d: %w", f.Num, err)
		}
		if len(o.Data) > 0 && c.packets(o.Pipe) {
			c.refused.add(fmt.Sprintf("descriptor %d (%s)", f.Num, o.Path), "it is a pipe of packets (O_DIRECT) that were not read, whose borders cannot be seen",
				"let the program read them first")
		}
	}
	return nil
}

// packets reports whether an end of a pipe is in packet mode.
func (c *capture) packets(pipe uint64) bool {
	return slices.ContainsFunc(c.st.Opens, func(o Open) bool {
		return o.Kind == OpenPipe && o.Pipe == pipe && o.Flags&unix.O_DIRECT != 0
	})
}

func (c *capture) describeAnon(d *descriptor, o *Open, all []descriptor) {
	switch d.link {
	case "anon_inode:[eventfd]":
		o.Kind, o.Count, o.Sem = OpenEventFD, d.info.EventCount, d.info.EventFDSem
		if !d.info.HasSemaphore {
			c.warn = append(c.warn, d.String()+": this kernel does not tell whether it is a semaphore; taken as a counter")
		}
	case "anon_inode:[eventpoll]":
		o.Kind = OpenEpoll
		for _, t := range d.info.Epoll {
			if !slices.ContainsFunc(all, func(e descriptor) bool { return e.num == t.FD && e.stat.Ino == t.Inode }) {
				c.refused.add(d.String(), "it watches descriptor "+strconv.Itoa(t.FD)+", which was closed or replaced since", "")
				continue
			}
			o.Watches = append(o.Watches, Watch{FD: t.FD, Events: t.Events, Data: t.Data})
		}
	default:
		c.refused.add(d.String(), "descriptors of this type are not preserved", "close it for the checkpoint, or: "+helpCRIU)
	}
}
