package proc

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// A PIDNamespace is a pid namespace for one process, its guest, of which
// nothing is left when the guest has ended. Its first process is ours: a table
// of system calls that has orphans reaped, waits for the guest's end, and ends,
// whereupon the kernel ends all others. As long as it knows of no guest it ends
// with this process.
//
// The guest is a child of whoever starts it, outside, and not of the first
// process: it is waited for and traced as any other.
type PIDNamespace struct {
	pid   int // of the first process; 0: it was waited for
	pidfd int // of the same; -1: there is a guest
	self  int // pidfd of this process
	sock  int // on which the first process hears of the guest
}

// pidNSName is what ps(1) shows of the first process.
const pidNSName = "lazyrest-init"

// NewPIDNamespace makes a pid namespace, and waits until it can be entered. It
// may be called on any thread. Whoever calls it calls Wait or End.
func NewPIDNamespace() (n *PIDNamespace, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("make a pid namespace: %w", err)
		}
	}()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(pair[1])
	n = &PIDNamespace{pidfd: -1, self: -1, sock: pair[0]}
	if n.self, err = unix.PidfdOpen(unix.Getpid(), 0); err != nil {
		n.close()
		return nil, err
	}
	if n.pid, n.pidfd, err = startInit(pair[1]); err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

// startInit starts the first process of a namespace; sock is its end.
func startInit(sock int) (pid, pidfd int, err error) {
	exe, err := MemFDExec(pidNSName, unix.MFD_CLOEXEC)
	if err != nil {
		return 0, -1, err
	}
	defer func() { unix.Close(exe) }()
	if exe == 0 { // which the child needs for the socket
		if exe, err = unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 3); err != nil {
			return 0, -1, err
		}
		unix.Close(0)
	}
	const anywhere = 1 << 32
	img, err := TableELF(anywhere, EndExit, initTable)
	if err != nil {
		return 0, -1, err
	}
	if _, err := unix.Write(exe, img); err != nil {
		return 0, -1, err
	}
	arena, err := NewArena(4096)
	if err != nil {
		return 0, -1, err
	}
	defer arena.Close()
	path, err1 := arena.String("")
	argv, err2 := arena.Strings([]string{pidNSName})
	envp, err3 := arena.Strings(nil)
	if err := errors.Join(err1, err2, err3); err != nil {
		return 0, -1, err
	}
	take := Call{NR: unix.SYS_DUP3, Args: [6]uint64{uint64(sock), 0}}
	if sock == 0 { // dup3 would not take its close-on-exec flag
		take = Call{NR: unix.SYS_FCNTL, Args: [6]uint64{0, unix.F_SETFD}}
	}
	return CloneExec([]Call{
		take,
		{NR: unix.SYS_SETSID},
		{NR: unix.SYS_EXECVEAT, Args: [6]uint64{uint64(exe), path, argv, envp, unix.AT_EMPTY_PATH}},
	}, 0, unix.CLONE_NEWPID)
}

// initTable is what the first process does. It has all signals blocked, and is
// killed from outside only. Descriptor 0 is the socket; the guest's pidfd that
// comes over it is 1, the lowest that is free. If the other end is closed
// before, there is no descriptor 1, which poll(2) says at once.
func initTable(a *Arena) ([]Call, error) {
	ignore, action, err := a.Alloc(32, 8) // struct sigaction, as the kernel has it
	if err != nil {
		return nil, err
	}
	binary.LittleEndian.PutUint64(action, 1) // SIG_IGN: nobody has to wait for children
	root, err1 := a.String("/")
	name, err2 := a.String(pidNSName)
	control, _, err3 := a.Alloc(24, 8) // a struct cmsghdr with one descriptor
	letter, _, err4 := a.Alloc(8, 8)
	iov, piece, err5 := a.Alloc(16, 8)
	message, msg, err6 := a.Alloc(56, 8) // struct msghdr
	wait, poll, err7 := a.Alloc(8, 8)    // struct pollfd
	if err := errors.Join(err1, err2, err3, err4, err5, err6, err7); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	le.PutUint64(piece, letter)
	le.PutUint64(piece[8:], 1)
	le.PutUint64(msg[16:], iov)
	le.PutUint64(msg[24:], 1)
	le.PutUint64(msg[32:], control)
	le.PutUint64(msg[40:], 24)
	le.PutUint32(poll, 1)
	le.PutUint16(poll[4:], unix.POLLIN)
	const rest = 1<<32 - 1
	return []Call{
		{NR: unix.SYS_CLOSE_RANGE, Args: [6]uint64{1, rest}},
		{NR: unix.SYS_RT_SIGACTION, Args: [6]uint64{uint64(unix.SIGCHLD), ignore, 0, 8}},
		{NR: unix.SYS_CHDIR | MayFail, Args: [6]uint64{root}},
		{NR: unix.SYS_PRCTL, Args: [6]uint64{unix.PR_SET_NAME, name}},
		{NR: unix.SYS_RECVMSG, Args: [6]uint64{0, message}},
		{NR: unix.SYS_CLOSE},
		{NR: unix.SYS_PPOLL, Args: [6]uint64{wait, 1}},
		{NR: unix.SYS_EXIT_GROUP},
	}, nil
}

// within runs f on the calling thread, to which it is locked: what f clones is
// born in the namespace.
func (n *PIDNamespace) within(f func() error) error {
	if err := unix.Setns(n.pidfd, unix.CLONE_NEWPID); err != nil {
		return fmt.Errorf("enter a pid namespace: %w", err)
	}
	err := f()
	if back := unix.Setns(n.self, unix.CLONE_NEWPID); back != nil {
		err = errors.Join(err, fmt.Errorf("leave a pid namespace: %w", back))
	}
	return err
}

// Settle names the guest, with which the namespace ends, and no longer with
// this process. Nobody else can be started in it then.
func (n *PIDNamespace) Settle(guest int) error {
	err := unix.Sendmsg(n.sock, []byte{0}, unix.UnixRights(guest), nil, unix.MSG_NOSIGNAL)
	n.close()
	if err != nil {
		return fmt.Errorf("tell a pid namespace of its guest: %w", err)
	}
	return nil
}

// close gives up what it takes to have a guest.
func (n *PIDNamespace) close() {
	for _, fd := range []*int{&n.pidfd, &n.self, &n.sock} {
		if *fd >= 0 {
			unix.Close(*fd)
		}
		*fd = -1
	}
}

// Wait waits until nothing of the namespace is left. That is not before the
// guest has ended and was waited for.
func (n *PIDNamespace) Wait() error {
	n.close()
	if n.pid == 0 {
		return nil
	}
	pid := n.pid
	n.pid = 0
	return reap(pid)
}

// End ends all that is in the namespace, and waits for it. A guest has to be
// waited for before.
func (n *PIDNamespace) End() error {
	if n.pid != 0 {
		if err := unix.Kill(n.pid, unix.SIGKILL); err != nil {
			return fmt.Errorf("end a pid namespace: %w", err)
		}
	}
	return n.Wait()
}

// ownProc are the calls by which a process that was born in a pid namespace
// gets a /proc of it. What is mounted elsewhere later, it gets to see too.
func ownProc(arena *Arena) ([]Call, error) {
	root, err1 := arena.String("/")
	dir, err2 := arena.String("/proc")
	kind, err3 := arena.String("proc")
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	return []Call{
		{NR: unix.SYS_UNSHARE, Args: [6]uint64{unix.CLONE_NEWNS}},
		{NR: unix.SYS_MOUNT, Args: [6]uint64{0, root, 0, unix.MS_REC | unix.MS_SLAVE}},
		{NR: unix.SYS_MOUNT, Args: [6]uint64{kind, dir, kind, flags}},
	}, nil
}

// ReadTaskIDs gives the threads of a process by the ids that they have in its
// own pid namespace.
func ReadTaskIDs(pid int) (map[int]int, error) {
	tids, err := ReadTasks(pid)
	if err != nil {
		return nil, err
	}
	ids := make(map[int]int, len(tids))
	for _, tid := range tids {
		s, err := ReadStatus(tid)
		if errors.Is(err, ErrNoProcess) {
			continue
		}
		if err != nil {
			return nil, err
		}
		inner := tid
		if n := len(s.NSpid); n > 0 {
			inner = s.NSpid[n-1]
		}
		ids[inner] = tid
	}
	return ids, nil
}

// ReadGuest looks whether process pid, whose status s is, is the guest of a
// PIDNamespace whose first process we see too, and which processes there are
// beside both, by the ids that they have there.
func ReadGuest(pid int, s *Status) (guest bool, others []int, err error) {
	own, err := ReadStatus(unix.Getpid())
	if err != nil {
		return false, nil, err
	}
	if len(s.NSpid) != len(own.NSpid)+1 {
		return false, nil, nil
	}
	// Its own /proc, which shows its namespace.
	exe, err := ReadLink(pid, "root/proc/1/exe")
	if err != nil || exe != "/memfd:"+pidNSName+" (deleted)" {
		return false, nil, nil
	}
	members, err := readNumbers(pathOf(pid, "root/proc"))
	if err != nil {
		return false, nil, err
	}
	for _, id := range members {
		if id != 1 && id != s.NSpid[len(s.NSpid)-1] {
			others = append(others, id)
		}
	}
	return true, others, nil
}
