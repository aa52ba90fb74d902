package native

import (
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// Much of /proc is about the one who reads it: /proc/mounts and /proc/net/dev are as
// /proc/self/status is. Such files are there once the process is, with the thread that they
// are about, so it opens them itself; the restoring command, which opens all others,
// would have its own.

// procTasks are the ids in a path of /proc: of a process, and of a thread of it.
func procTasks(path string) (ids []int) {
	name, rest, _ := strings.Cut(strings.TrimPrefix(path, "/proc/"), "/")
	id, err := strconv.Atoi(name)
	if err != nil || !strings.HasPrefix(path, "/proc/") {
		return nil
	}
	ids = append(ids, id)
	if rest, ok := strings.CutPrefix(rest, "task/"); ok {
		name, _, _ = strings.Cut(rest, "/")
		if id, err = strconv.Atoi(name); err == nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// inProc is how we come to a path of /proc as the process sees it.
func (c *capture) inProc(path string) string {
	if c.isGuest {
		return "/proc/" + strconv.Itoa(c.pid) + "/root" + path
	}
	return path
}

// describeProc tells a file of /proc, of which there is nothing to compare: what is read
// there is made at each reading. Those about other processes would be gone, or about
// somebody else.
func (c *capture) describeProc(d *descriptor, o *Open) {
	const help = "close it for the checkpoint"
	o.Kind = OpenDevice
	ids := procTasks(d.link)
	if len(ids) > 0 && !c.isOwn(ids[0]) {
		c.refused.add(d.String(), "it is about another process", help)
		return
	}
	why := astray(c.inProc(d.link), &d.stat)
	if why != "" && c.isGuest && len(ids) == 0 {
		why = astray(d.link, &d.stat) // the command that restored the process has opened it
	}
	if why != "" {
		c.refused.add(d.String(), why, help)
	}
	// The command could see that one can be had, and not give it to the process.
	ofDescription := func(l string) bool { return strings.Contains(l, " OFDLCK ") }
	if len(ids) > 0 && slices.ContainsFunc(d.info.Locks, ofDescription) {
		c.refused.add(d.String(), "a lock of such a file is not preserved", "unlock it for the checkpoint")
	}
}

// isOwn reports whether an id in /proc is the process's, or a thread's of it.
func (c *capture) isOwn(id int) bool {
	text, err := os.ReadFile(c.inProc("/proc/" + strconv.Itoa(id) + "/status"))
	if err != nil {
		return false // it has ended
	}
	s, err := proc.ParseStatus(text)
	return err == nil && s.Tgid == innerID(&c.status)
}

// aboutItself reports whether o is a file of /proc that the process has to open itself.
func (st *State) aboutItself(o *Open) bool {
	if o.Kind != OpenDevice {
		return false
	}
	ids := procTasks(o.Path)
	return len(ids) > 0 && slices.ContainsFunc(st.Threads, func(th Thread) bool { return th.TID == ids[0] })
}

// ownFiles plans the opening of these files, when all threads are there. Their places are
// taken, by what has kept them until now, and so are those of all that the restore has
// open: what is opened gets the first number beyond.
func (b *builder) ownFiles(t *table) {
	var spare uint64
	for i := range b.st.Opens {
		o := &b.st.Opens[i]
		if !b.st.aboutItself(o) {
			continue
		}
		if spare == 0 {
			spare = uint64(b.unused())
		}
		flags := uint64(reopenFlags(o.Flags))
		t.call("open", unix.SYS_OPENAT, atFDCWD, b.prog.cstring(o.Path), flags|unix.O_NOCTTY).on(o.Path).returns(spare)
		if o.Offset != 0 {
			t.call("seek", unix.SYS_LSEEK, spare, uint64(o.Offset), unix.SEEK_SET).on(o.Path).returns(uint64(o.Offset))
		}
		for _, f := range b.st.FDs {
			if f.Open == uint32(i) {
				b.place(t, spare, f)
			}
		}
		t.call("close", unix.SYS_CLOSE, spare)
	}
}

// unused is the first number that neither the process uses nor the restore.
func (b *builder) unused() int {
	all := places{used: slices.Clone(b.re.owned)}
	for _, f := range b.st.FDs {
		all.used = append(all.used, f.Num)
	}
	slices.Sort(all.used)
	all.used = slices.Compact(all.used)
	return all.free(0)
}
