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

// A state is what a successor cannot learn from the keeper. What pages there
// are, and what events have made of them, is in the pager's own state.
type state struct {
	path string
	// file is the file that was written last, -1 if none was. It is open, and locked by flock(2) for as long as this process
	// or its keeper lives, who has it too: so it shows where the ids of processes say nothing whether anybody does.
	file int

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
		path: filepath.Join(dir, StateName), file: -1, Boot: bootID(), PIDNamespace: pidNamespace(), Images: images, Keepers: []keeper{own},
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

// isHeld reports whether the daemon that wrote the file lives, or its keeper, wherever that is.
func (s *state) isHeld() bool {
	fd, err := unix.Open(s.path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fd) }()
	return errors.Is(unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
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
	file := s.file
	*s = *other
	s.file = file
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
	s := &state{path: filepath.Join(dir, StateName), file: -1}
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
	next := s.path + ".new"
	fd, err := unix.Open(next, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &fs.PathError{Op: "open", Path: next, Err: err}
	}
	_ = unix.Flock(fd, unix.LOCK_SH|unix.LOCK_NB) // where there are no locks, nothing is held
	n, err := unix.Write(fd, append(b, '\n'))
	if err == nil && n <= len(b) {
		err = io.ErrShortWrite
	}
	if err != nil {
		_ = unix.Close(fd)
		return &fs.PathError{Op: "write", Path: next, Err: err}
	}
	if err := unix.Rename(next, s.path); err != nil {
		_ = unix.Close(fd)
		return &os.LinkError{Op: "rename", Old: next, New: s.path, Err: err}
	}
	s.letGo()
	s.file = fd
	return nil
}

// letGo closes the file.
func (s *state) letGo() {
	if s.file >= 0 {
		_ = unix.Close(s.file)
		s.file = -1
	}
}

func (s *state) remove() error {
	s.letGo()
	if err := os.Remove(s.path); !errors.Is(err, fs.ErrNotExist) {
		return err
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
