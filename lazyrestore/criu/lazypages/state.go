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

	"golang.org/x/sys/unix"
)

// StateName is the name, in the work directory, of the file that a successor
// finds its way by. It is there from before anybody can connect.
const StateName = "lazy-pages.state"

// A state is what a successor cannot learn from the keeper. What pages there
// are, and what events have made of them, is in the pager's own state.
type state struct {
	path string

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
	// Connection is the descriptor of criu restore's, or of the socket that it connects to; -1 once the tree is built.
	Connection int `json:"connection"`
}

func newState(dir string, pid int, images string) *state {
	return &state{path: filepath.Join(dir, StateName), Images: images, Keepers: []keeper{{pid, -1}}}
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
	s := &state{path: filepath.Join(dir, StateName)}
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
	n, err := unix.Write(fd, append(b, '\n'))
	if err == nil && n <= len(b) {
		err = io.ErrShortWrite
	}
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		return &fs.PathError{Op: "write", Path: next, Err: err}
	}
	if err := unix.Rename(next, s.path); err != nil {
		return &os.LinkError{Op: "rename", Old: next, New: s.path, Err: err}
	}
	return nil
}

func (s *state) remove() error {
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
