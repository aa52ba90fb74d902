package lazypages

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/pager"
)

// StateName is the name, in the work directory, of the file that a successor
// finds its way by. It is there from before anybody can connect.
const StateName = "lazy-pages.state"

// HeldName is the name there of a file that the daemon has open and locked by flock(2), and so has its keeper, who shares its
// descriptors: so it shows where the ids of processes say nothing whether anybody lives. It is not the state, which is replaced
// with each word: a successor that fails has written, and who is left is the keeper of the one before.
const HeldName = "lazy-pages.held"

// A state is what a successor cannot learn from the keeper. What pages there
// are, and what events have made of them, is in the pager's own state.
type state struct {
	path string
	held int // the file of HeldName, from the first word on; -1 before

	// Boot and PIDNamespace are those in which the ids of processes are what they say, "" and 0 if not known.
	Boot         string `json:"boot,omitempty"`
	PIDNamespace uint64 `json:"pid_namespace,omitempty"`
	// Images is the sum of what is served, see set.sum.
	Images string `json:"images"`
	// Keepers may hold the descriptors: the first of them that lives does.
	Keepers []keeper `json:"keepers"`
	// Coming is the task whose userfaultfd is being taken.
	Coming  int   `json:"coming"`
	Tasks   []int `json:"tasks"` // that have come
	Zombies []int `json:"zombies"`
	// Done says that nothing is missing any more, whoever holds the descriptors.
	Done bool `json:"done,omitempty"`
}

// A keeper is a process that shares, or shared, a daemon's descriptors.
type keeper struct {
	Pid int `json:"pid"`
	// Start is when it began, as /proc/PID/stat has it, which tells it from a later process of that id; 0 if not known.
	Start uint64 `json:"start,omitempty"`
	// Connection is the descriptor of criu restore's, or of the socket that it connects to; -1 once the tree is built.
	Connection int `json:"connection"`
}

func newState(dir string, k *pager.Keeper, images string) *state {
	own := keeper{Pid: k.Pid(), Connection: -1}
	own.Start, _ = k.Began()
	return &state{
		path: filepath.Join(dir, StateName), held: -1, Boot: bootID(), PIDNamespace: pidNamespace(), Images: images, Keepers: []keeper{own},
	}
}

// bootID tells one boot of the machine from others; "" where it is not to be had.
func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

// pidNamespace tells this process's pid namespace from others that there are; 0 where it is not to be had.
func pidNamespace() uint64 {
	var st unix.Stat_t
	if unix.Stat("/proc/self/ns/pid", &st) != nil {
		return 0
	}
	return st.Ino
}

// isOld reports whether the machine was booted since: nobody has outlived that.
func (s *state) isOld() bool {
	boot := bootID()
	return s.Boot != "" && boot != "" && s.Boot != boot
}

// isElsewhere reports whether the ids of processes in it are of another pid namespace.
func (s *state) isElsewhere() bool {
	ns := pidNamespace()
	return s.PIDNamespace != 0 && ns != 0 && s.PIDNamespace != ns
}

// isHeld reports whether a daemon of the work directory lives, or its keeper, wherever that is. The error is why that cannot be
// told, as where the file system has no locks.
func (s *state) isHeld() (bool, error) {
	fd, err := s.openHeld(0)
	if err != nil {
		return false, err
	}
	defer func() { _ = unix.Close(fd) }()
	err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, os.NewSyscallError("flock", err)
}

// openHeld opens the file of HeldName. Some file systems lock only what is open for writing.
func (s *state) openHeld(flags int) (int, error) {
	path := filepath.Join(filepath.Dir(s.path), HeldName)
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW|flags, 0o600)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// hold locks the file of HeldName, beside a keeper of a daemon before, if that is not done.
func (s *state) hold() error {
	if s.held >= 0 {
		return nil
	}
	fd, err := s.openHeld(unix.O_CREAT)
	if err != nil {
		return err
	}
	_ = unix.Flock(fd, unix.LOCK_SH|unix.LOCK_NB) // where there are no locks isHeld sees that
	s.held = fd
	return nil
}

// open refers to the keeper. The error wraps pager.ErrNoPredecessor where it has ended, also if its id is another process's by now.
func (k *keeper) open() (*pager.Leftover, error) {
	of, err := pager.OpenLeft(k.Pid)
	if err != nil || k.Start == 0 {
		return of, err
	}
	began, err := of.Began()
	if err == nil && began != k.Start {
		err = fmt.Errorf("%w: process %d is another one", pager.ErrNoPredecessor, k.Pid)
	}
	if err != nil {
		of.Close()
		return nil, err
	}
	return of, nil
}

// become makes s say what other says.
func (s *state) become(other *state) {
	held := s.held
	*s = *other
	s.held = held
}

// building reports whether the tree is still being built.
func (s *state) building() bool {
	return slices.ContainsFunc(s.Keepers, func(k keeper) bool { return k.Connection >= 0 })
}

// errDamagedState is for a state that cannot be read. No daemon that is killed leaves one; a crash of the machine, after which
// nobody waits, may.
var errDamagedState = errors.New("it is damaged")

// readState reads the file that a predecessor left.
func readState(dir string) (*state, error) {
	s := &state{path: filepath.Join(dir, StateName), held: -1}
	b, err := os.ReadFile(s.path)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", s.path, errDamagedState, err)
	}
	return s, nil
}

// write replaces the file. It is not synced: after a crash of the machine
// there is nothing to take over. criu restore is at work meanwhile, so it is as
// few system calls as can be.
func (s *state) write() error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := s.hold(); err != nil {
		return err
	}
	next := s.path + ".new"
	fd, err := unix.Open(next, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &fs.PathError{Op: "open", Path: next, Err: err}
	}
	n, err := unix.Write(fd, append(b, '\n'))
	if err == nil && n <= len(b) {
		err = io.ErrShortWrite
	}
	_ = unix.Close(fd)
	if err != nil {
		return &fs.PathError{Op: "write", Path: next, Err: err}
	}
	if err := unix.Rename(next, s.path); err != nil {
		return &os.LinkError{Op: "rename", Old: next, New: s.path, Err: err}
	}
	return nil
}

// letGo lets go of what hold locks.
func (s *state) letGo() {
	if s.held >= 0 {
		_ = unix.Close(s.held)
		s.held = -1
	}
}

// remove removes the state, and then what says that it is held.
func (s *state) remove() error {
	defer s.letGo()
	for _, path := range []string{s.path, filepath.Join(filepath.Dir(s.path), HeldName)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// complete notes that the tree is built.
func (s *state) complete() error {
	s.Coming = 0
	return s.write()
}

// finish notes that nothing is missing any more.
func (s *state) finish() error {
	s.Done = true
	return s.write()
}

func (s *state) has(pid int) bool { return slices.Contains(s.Tasks, pid) }

// coming notes a task before its userfaultfd is taken.
func (s *state) coming(pid int) error {
	s.Coming = pid
	return s.write()
}

// came notes it once the pager has it.
func (s *state) came(pid int) error {
	s.Coming = 0
	s.Tasks = append(s.Tasks, pid)
	return s.write()
}

// zombie notes one before its message is taken; it may have been noted.
func (s *state) zombie(pid int) error {
	if slices.Contains(s.Zombies, pid) {
		return nil
	}
	s.Zombies = append(s.Zombies, pid)
	return s.write()
}
