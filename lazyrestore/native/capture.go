package native

import (
	"cmp"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// A capture is the reading of one frozen process's state. What an image cannot
// hold is collected in refused, all of it, before anything is written.
type capture struct {
	pid     int
	st      *State
	refused reasons
	status  proc.Status
	nspaces []proc.Namespace // of its first thread
	inner   map[int]int      // by our id of a task, the one in its own pid namespace
	isGuest bool             // it is the guest of a pid namespace, see guest.go
	smaps   proc.Smaps
	warn    []string
	mute    bool // it cannot be asked, for a reason to refuse that is known
	alone   bool // it has no children, as far as the kernel lists them
	waits   bool // there is somebody that it can wait for: a child, or one that it traces
	fds     *fdTable

	behindVDSO page.Range // what is left of its pages; see sameVDSO

	registered bool // some memory is, with a userfaultfd
	abandoned  bool // nobody answers for that: to look into it would never end

	displaced []displacement
	pairs     [][2]*descriptor // of sockets: each, and its other end
	systems   map[uint64]int64 // by device: the kind of its file system
	pipes     map[uint64]bool  // whose content is noted

	files   map[fileID]uint32 // index in st.Files
	objects map[objectID]*object
	order   []*object // of st.Shared

	terminal foreground // its controlling terminal

	held []page.Addr // robust futexes that threads hold
}

// fileID is a mapped file. Several may have had one path, one after the other.
type fileID struct {
	path string
	objectID
}

const helpCRIU = "criu dump can take it"

// captureProc reads all that /proc tells of the process.
func (c *capture) fromProc() error {
	steps := []func() error{
		c.identity, c.namespaces, c.privileges, c.family, c.posixTimers, c.mappings, c.descriptors,
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (c *capture) identity() error {
	var err error
	if c.status, err = proc.ReadStatus(c.pid); err != nil {
		return err
	}
	stat, err := proc.ReadStat(c.pid)
	if err != nil {
		return err
	}
	for _, line := range append(c.status.Unknown, stat.Unknown...) {
		c.refused.add("/proc/"+strconv.Itoa(c.pid)+": "+line, "it is not known to this version", "report it")
	}
	st := c.st
	st.Arch, st.PID = runtime.GOARCH, c.pid
	st.Comm = c.status.Name
	st.Session = sessionOf(&stat, &c.status)
	c.terminal = foregroundOf(&stat)
	st.Umask = c.status.Umask
	st.NoNewPrivs = c.status.NoNewPrivs
	st.THPDisable = !c.status.THPEnabled
	st.MM = MM{
		StartCode: stat.StartCode, EndCode: stat.EndCode, StartData: stat.StartData, EndData: stat.EndData,
		StartBrk: stat.StartBrk, StartStack: stat.StartStack,
		ArgStart: stat.ArgStart, ArgEnd: stat.ArgEnd, EnvStart: stat.EnvStart, EnvEnd: stat.EnvEnd,
	}
	persona, err := proc.ReadPersonality(c.pid)
	if err != nil {
		return err
	}
	st.Persona = uint64(persona)
	if st.Auxv, err = proc.ReadFile(c.pid, "auxv"); err != nil {
		return err
	}
	limits, err := proc.ReadLimits(c.pid)
	if err != nil {
		return err
	}
	for _, l := range limits {
		st.Limits = append(st.Limits, Limit(l))
	}
	if st.OOMScore, err = proc.ReadOOMScoreAdj(c.pid); err != nil {
		return err
	}
	if st.TimerSlack, err = proc.ReadTimerSlack(c.pid); err != nil {
		return hidden(err)
	}
	if filter, err := proc.ReadCoreFilter(c.pid); err == nil {
		st.CoreFilter = filter + 1
	} else if !errors.Is(err, unix.ENOENT) { // a kernel without core dumps
		return err
	}
	if st.Cwd, err = proc.ReadLink(c.pid, "cwd"); err != nil {
		return err
	}
	if err := c.workingDirectory(); err != nil {
		return err
	}
	exe, err := proc.ReadLink(c.pid, "exe")
	if err != nil {
		return err
	}
	st.Exe, err = c.mappedFile(exe, "/proc/"+strconv.Itoa(c.pid)+"/exe", "the executable")
	return err
}

const deletedSuffix = " (deleted)"

// mappedFile names a file by the path that leads to it now: through link, a
// symbolic link of /proc that always does, it is compared with the path.
func (c *capture) mappedFile(path, link, what string) (Mapped, error) {
	var have unix.Stat_t
	if err := unix.Stat(link, &have); err != nil {
		return Mapped{}, fmt.Errorf("stat %s: %w", link, err)
	}
	if removed(path, &have) {
		c.refused.add(what+" "+path, "the file was removed or replaced while in use", "start the program again with the file that is there now")
	} else if why := astray(path, &have); why != "" {
		c.refused.add(what+" "+path, why, "put the old file back")
	}
	return Mapped{Path: path, Size: have.Size, MTime: have.Mtim.Nano()}, nil
}

// removed reports whether a file has no name any more, or not the one by which the process has it:
// the kernel ends its path with a word that a name may really end with.
func removed(path string, have *unix.Stat_t) bool {
	return have.Nlink == 0 || strings.HasSuffix(path, deletedSuffix) && astray(path, have) != ""
}

// astray says why a path, which is all that a restore has, does not lead to the file
// that the process has; empty where it does.
func astray(path string, have *unix.Stat_t) string {
	var named unix.Stat_t
	if err := unix.Stat(path, &named); err != nil {
		return "its path leads nowhere: " + err.Error()
	}
	if named.Ino != have.Ino || named.Dev != have.Dev {
		return "its path leads to another file now"
	}
	return ""
}

// workingDirectory refuses one that the restored process would not find again.
func (c *capture) workingDirectory() error {
	what, help := "the working directory "+c.st.Cwd, "change the directory before the checkpoint"
	var have unix.Stat_t
	if err := unix.Stat("/proc/"+strconv.Itoa(c.pid)+"/cwd", &have); err != nil {
		return fmt.Errorf("stat the working directory: %w", err)
	}
	if removed(c.st.Cwd, &have) {
		c.refused.add(what, "it was removed", help)
	} else if why := astray(c.st.Cwd, &have); why != "" {
		c.refused.add(what, why, help)
	} else if slices.ContainsFunc(procTasks(c.st.Cwd), func(id int) bool { return id != c.pid }) {
		c.refused.add(what, "it is about another process or thread", help)
	}
	return nil
}

// namespaces refuses a process that lives in another world than we do.
func (c *capture) namespaces() error {
	own, err := proc.ReadNamespaces(unix.Getpid())
	if err != nil {
		return err
	}
	if c.nspaces, err = proc.ReadNamespaces(c.pid); err != nil {
		return err
	}
	guest, err := c.guest()
	if err != nil {
		return err
	}
	c.isGuest = guest
	ownLink := make(map[string]string)
	for _, ns := range own {
		ownLink[ns.Name] = ns.Link
	}
	for _, ns := range c.nspaces {
		switch {
		case ns.Name == "time":
			// Another one shows other clocks, which are kept; but it has to be
			// the one of its children, too.
			ownLink["time_for_children"] = ns.Link
			continue
		case guest && ns.Name == "pid":
			ownLink["pid_for_children"] = ns.Link
			continue
		case guest && ns.Name == "mnt":
			continue
		}
		if ns.Link == ownLink[ns.Name] {
			continue
		}
		c.refused.add("namespace "+cmp.Or(ns.Link, ns.Name+" without a process yet"),
			"the process is in another "+ns.Name+" namespace than this command", "run the checkpoint inside, or: "+helpCRIU)
	}
	root, err := proc.ReadLink(c.pid, "root")
	if err != nil {
		return err
	}
	c.rootDirectory(root)
	return nil
}

func (c *capture) rootDirectory(root string) {
	if root != "/" {
		c.refused.add("root directory "+root, "the process has changed its root", helpCRIU)
	}
}

func (c *capture) privileges() error {
	s := &c.status
	c.st.Creds = credsOf(s)
	if s.Seccomp != 0 {
		c.refused.add("seccomp", "the process has system call filters", helpCRIU)
	}
	if s.ThreadFeatures != "" {
		c.refused.add("thread features "+s.ThreadFeatures, "shadow stacks cannot be restored", helpShadowStack)
	}
	own, err := proc.ReadStatus(unix.Getpid())
	if err != nil {
		return err
	}
	if own.Speculation != s.Speculation {
		c.refused.add("speculation control", fmt.Sprintf("%v is not what a new process has", s.Speculation), "")
	}
	if s.UntagMask != 0 && s.UntagMask != own.UntagMask {
		c.refused.add("tagged addresses", "the process has the processor ignore bits of addresses", "")
	}
	return nil
}

// family refuses a process that has children.
func (c *capture) family() error {
	tasks, err := proc.ReadTasks(c.pid)
	if err != nil {
		return err
	}
	c.alone = true
	for _, tid := range tasks {
		children, err := proc.ReadFile(c.pid, "task/"+strconv.Itoa(tid)+"/children")
		if errors.Is(err, unix.ENOENT) {
			return nil // a kernel without CONFIG_PROC_CHILDREN
		}
		if err != nil {
			return err
		}
		for _, child := range strings.Fields(string(children)) {
			c.alone = false
			c.refused.add("child process "+child, "an image holds one process", "let it end first, or: "+helpCRIU)
		}
	}
	return nil
}

// tracees refuses a process that there is somebody for to wait for though it has no
// children: it traces others, which would be let go, or killed, at its end. They are looked
// for only then. tids are the process's threads.
func (c *capture) tracees(tids []int) error {
	if !c.waits {
		return nil
	}
	pids, err := proc.ReadProcesses()
	if err != nil {
		return err
	}
	var traced []int
	for _, pid := range pids {
		tasks, err := proc.ReadTasks(pid)
		if err != nil {
			continue // it has ended
		}
		for _, tid := range tasks {
			if s, err := proc.ReadStatus(tid); err == nil && s.TracerPid != 0 && slices.Contains(tids, s.TracerPid) {
				traced = append(traced, pid)
				break
			}
		}
	}
	const why, help = "an image holds one process, and at its end the other would be let go, or killed", "have it let the other go"
	for _, pid := range traced {
		c.refused.add("process "+named(pid)+", which it traces", why, help)
	}
	if c.alone && len(traced) == 0 {
		c.refused.add("a process that it can wait for", "it has a child, or traces another process, which cannot be seen from here", helpCRIU)
	}
	return nil
}

// eagerWords are the addresses of the words of a thread that the kernel reads
// or writes without raising a fault that a pager could answer, and of those
// that its first instruction needs.
func (th *Thread) eagerWords() []page.Range {
	var rs []page.Range
	word := func(at, n uint64) {
		if at != 0 {
			rs = append(rs, page.Range{Start: page.Addr(at).Down(), End: page.Addr(at + n).Up()})
		}
	}
	word(th.ClearTID, 4)
	word(th.RobustList, 24)
	word(th.RSeq.Addr, uint64(th.RSeq.Len))
	rs = append(rs, th.sleepWords()...)
	// Not needed for correctness, but each would be a fault before the first
	// instruction is done.
	stack, thread := firstTouched(&th.Regs)
	word(thread, 8)
	word(stack-64, 128)
	return rs
}
