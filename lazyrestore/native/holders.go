package native

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// What another process holds too (an end of a pipe, an open file description,
// shared memory) cannot be restored: each would have its own afterwards, and
// neither would know. The kernel keeps no list of holders, so all processes are
// looked through. Most of them are done with one readlink for each descriptor:
// only where that is one of ours too is more asked.
//
// What nobody can look into is not seen: descriptors on their way through a
// socket of somebody else's, or in an io_uring.

// A holding is one thing of the process that others hold too.
type holding struct {
	what, why string
	stdio     bool // it is a file on descriptors 0 to 2: a warning will do
	at        int  // place in the list of reasons
	pids      []int
}

// A holderSearch looks for the holders of what is in it.
type holderSearch struct {
	pid     int
	uid     uint32
	fds     map[string]*sharable // by what /proc says of a descriptor
	objects map[objectID]*holding
	inodes  map[uint64]bool // of objects
	found   []*holding
	unseen  int // processes that could not be looked at
}

// A sharable is what /proc has one word for: one or more open file
// descriptions.
type sharable struct {
	ds       []*descriptor // one of each description, in the order of kcmp
	holdings []*holding    // of the same
	how      sameness
}

// sameness says when another's descriptor with the same name is the same.
type sameness uint8

const (
	sameName   sameness = iota // always: the name has the inode
	sameInode                  // where device and inode are
	sameKernel                 // where kcmp says so
)

// holders looks for other processes that hold what the process has. Whoever
// calls it holds no copies of the process's descriptors.
func (c *capture) holders() error {
	s := &holderSearch{pid: c.pid, uid: c.status.Uid[0], fds: make(map[string]*sharable), objects: make(map[objectID]*holding), inodes: make(map[uint64]bool)}
	c.sharables(s)
	if err := s.run(); err != nil {
		return err
	}
	slices.SortStableFunc(s.found, func(a, b *holding) int { return cmp.Compare(a.at, b.at) })
	for _, h := range s.found {
		if h.stdio {
			c.warn = append(c.warn, h.what+": "+processes(h.pids)+" the same open file; they share its offset now, and will not after a restore")
			continue
		}
		c.refused.add(h.what, processes(h.pids)+" "+h.why, "end that process or have it let go for the checkpoint, or: "+helpCRIU)
	}
	if s.unseen > 0 {
		c.warn = append(c.warn, fmt.Sprintf("%d processes could not be looked at: whether they share descriptors or memory with this one is not known", s.unseen))
	}
	return nil
}

// named is a process's id, and its name in brackets.
func named(pid int) string {
	name := strconv.Itoa(pid)
	if b, err := proc.ReadFile(pid, "comm"); err == nil {
		name += " (" + printable(strings.TrimSuffix(string(b), "\n")) + ")"
	}
	return name
}

// printable is a name that a process gave itself, for a message that may go to a terminal.
func printable(name string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, name)
}

// processes is the beginning of a sentence about the processes in pids.
func processes(pids []int) string {
	const most = 4
	var names []string
	for i, pid := range pids {
		if i == most {
			return fmt.Sprintf("processes %s and %d more have", strings.Join(names, ", "), len(pids)-most)
		}
		names = append(names, named(pid))
	}
	if len(names) == 1 {
		return "process " + names[0] + " has"
	}
	return "processes " + strings.Join(names, ", ") + " have"
}

// sharables puts into s what another process may not hold.
func (c *capture) sharables(s *holderSearch) {
	for link, ds := range c.fds.groups {
		for _, d := range ds {
			how, stdio, matters := c.sharing(d)
			if !matters {
				continue
			}
			sh := s.fds[link]
			if sh == nil {
				sh = &sharable{how: how}
				s.fds[link] = sh
			}
			sh.ds = append(sh.ds, d)
			sh.holdings = append(sh.holdings, &holding{what: d.String(), why: "it open too", stdio: stdio, at: d.num})
		}
	}
	for _, o := range c.order {
		if c.st.Shared[o.index].More.Path != "" && !o.shared {
			continue // another finds it by its name, too
		}
		s.inodes[o.id.ino] = true
		s.objects[o.id] = &holding{what: "shared memory " + c.st.Shared[o.index].Name, why: "it mapped or open too", at: math.MaxInt}
	}
}

// sharing says whether it matters that another process has what d refers to,
// and how that is found out.
func (c *capture) sharing(d *descriptor) (how sameness, stdio, matters bool) {
	o := &c.st.Opens[d.open]
	if o.Flags&unix.O_PATH != 0 {
		return 0, false, false // it knows a file by name only
	}
	switch o.Kind {
	case OpenDevice, OpenStdio, OpenNull, OpenTerminal:
		return 0, false, false // nothing that is shared is kept
	case OpenPipe, OpenSocket:
		return sameName, false, true
	case OpenDeleted, OpenFIFO:
		return sameInode, false, true
	case OpenFile:
		// Two that append share nothing that shows.
		return sameKernel, d.num <= 2, o.Flags&(unix.O_APPEND|unix.O_ACCMODE) != unix.O_APPEND|unix.O_WRONLY
	default:
		return sameKernel, false, true
	}
}

// run looks through all processes, and a while longer at those that seem to
// hold something: a process about to execute another program has all of its
// parent's for a moment.
func (s *holderSearch) run() error {
	pids, err := proc.ReadProcesses()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if pid == s.pid {
			continue
		}
		if err := s.process(pid); err != nil {
			return err
		}
	}
	for deadline := time.Now().Add(50 * time.Millisecond); len(s.found) > 0 && time.Now().Before(deadline); {
		time.Sleep(2 * time.Millisecond)
		if err := s.again(); err != nil {
			return err
		}
	}
	return nil
}

// again looks at the holders found so far.
func (s *holderSearch) again() error {
	var pids []int
	for _, h := range s.found {
		pids = append(pids, h.pids...)
		h.pids = nil
	}
	s.found = nil
	slices.Sort(pids)
	for _, pid := range slices.Compact(pids) {
		if err := s.process(pid); err != nil {
			return err
		}
	}
	return nil
}

// holds notes that a process has what h is about.
func (s *holderSearch) holds(h *holding, pid int) {
	if len(h.pids) == 0 {
		s.found = append(s.found, h)
	}
	if !slices.Contains(h.pids, pid) {
		h.pids = append(h.pids, pid)
	}
}

// process looks at what one process holds. One that ends meanwhile holds
// nothing.
func (s *holderSearch) process(pid int) error {
	for _, whole := range [...]struct {
		kind proc.Resource
		why  string
	}{{proc.ResourceMemory, "all of its memory"}, {proc.ResourceFiles, "the same table of descriptors"}, {proc.ResourceFS, "the same working directory and umask"}} {
		if same, err := proc.SameResource(s.pid, pid, whole.kind); err == nil && same {
			s.holds(&holding{what: "process " + strconv.Itoa(s.pid), why: whole.why + " (clone)"}, pid)
		}
	}
	err := s.descriptors(pid)
	if err == nil {
		err = s.mapped(pid)
	}
	switch {
	case errors.Is(err, proc.ErrNoProcess), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH):
		return nil
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		// Another user's process, or init, has nothing of this one's.
		if status, err := proc.ReadStatus(pid); pid != 1 && err == nil && status.Uid[0] == s.uid {
			s.unseen++
		}
		return nil
	}
	return err
}

func (s *holderSearch) descriptors(pid int) error {
	if len(s.fds)+len(s.objects) == 0 {
		return nil
	}
	return proc.EachFD(pid, func(fd int, link []byte) error {
		if len(s.objects) > 0 && bytes.HasSuffix(link, []byte(deletedSuffix)) {
			if err := s.object(pid, "/fd/"+strconv.Itoa(fd)); err != nil {
				return err
			}
		}
		sh := s.fds[string(link)]
		if sh == nil {
			return nil
		}
		switch sh.how {
		case sameName:
			for _, h := range sh.holdings {
				s.holds(h, pid)
			}
		case sameInode:
			return s.sameInode(sh, pid, fd)
		case sameKernel:
			i, same := slices.BinarySearchFunc(sh.ds, fd, func(d *descriptor, fd int) int {
				order, err := proc.CompareFiles(s.pid, d.num, pid, fd)
				if err != nil {
					return -1 // it was closed, or its process ended
				}
				return order
			})
			if same {
				s.holds(sh.holdings[i], pid)
			}
		}
		return nil
	})
}

func (s *holderSearch) sameInode(sh *sharable, pid, fd int) error {
	st, err := statGone(pid, "/fd/"+strconv.Itoa(fd))
	for i, d := range sh.ds {
		if d.stat.Dev == st.Dev && d.stat.Ino == st.Ino {
			s.holds(sh.holdings[i], pid)
		}
	}
	return err
}

// mapped looks for mappings of the process's shared memory.
func (s *holderSearch) mapped(pid int) error {
	if len(s.objects) == 0 {
		return nil
	}
	vmas, err := proc.ReadMaps(pid)
	if err != nil {
		return err
	}
	for i := range vmas {
		if v := &vmas[i]; s.inodes[v.Inode] {
			if err := s.object(pid, fmt.Sprintf("/map_files/%x-%x", uint64(v.Start), uint64(v.End))); err != nil {
				return err
			}
		}
	}
	return nil
}

// object looks whether a link in /proc/PID leads to shared memory of the
// process.
func (s *holderSearch) object(pid int, link string) error {
	st, err := statGone(pid, link)
	if h := s.objects[objectID{st.Dev, st.Ino}]; h != nil && err == nil {
		s.holds(h, pid)
	}
	return err
}

// statGone is stat of what a link in /proc/PID leads to; nothing, where that
// was closed or unmapped meanwhile.
func statGone(pid int, link string) (st unix.Stat_t, err error) {
	err = unix.Stat("/proc/"+strconv.Itoa(pid)+link, &st)
	if errors.Is(err, unix.ENOENT) {
		return unix.Stat_t{}, nil
	}
	return st, err
}

// threadShares refuses a thread that has parted from its process.
func (c *capture) threadShares(tid int) error {
	if tid == c.pid {
		return nil
	}
	for _, r := range [...]struct {
		kind proc.Resource
		what string
	}{{proc.ResourceFiles, "descriptors"}, {proc.ResourceFS, "a working directory and umask"}} {
		same, err := proc.SameResource(c.pid, tid, r.kind)
		if err != nil {
			return err
		}
		if !same {
			c.refused.add("thread "+strconv.Itoa(tid), "it has "+r.what+" of its own (unshare)", helpCRIU)
		}
	}
	return nil
}
