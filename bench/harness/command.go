package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a command has to end once it has no reason to go on.
const patience = 30 * time.Second

// A command is a process that we started: a checkpoint, a restore, a daemon.
type command struct {
	name string
	cmd  *exec.Cmd
	// began is the clock just before it was started.
	began time.Time
	ended chan struct{}
	over  time.Time // the clock when it had ended
	err   error
	said  *tail
	// leaves is the end of a pipe whose other end the command has, and all that
	// it leaves behind; nil of one that leaves nothing. Stop waits for those too.
	leaves *os.File
}

// launch starts a command whose output is kept for the error message.
func launch(name string, cmd *exec.Cmd) (*command, error) {
	c := &command{name: name, cmd: cmd, ended: make(chan struct{}), said: &tail{}}
	cmd.Stderr = c.said
	cmd.WaitDelay = time.Second // others may hold the pipe of its output
	c.began = time.Now()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	go func() {
		awaitEnd(cmd.Process.Pid)
		c.err = cmd.Wait()
		c.over = time.Now()
		if errors.Is(c.err, exec.ErrWaitDelay) {
			c.err = nil
		}
		close(c.ended)
	}()
	return c, nil
}

// awaitEnd waits for the end of a child without a system call that blocks: Go's
// runtime looks at such a one every 100 us at first, on a processor that may be
// wanted by what is measured. Where it cannot, it returns at once.
func awaitEnd(pid int) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	conn, err := f.SyscallConn()
	if err != nil {
		return
	}
	_ = conn.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
	})
}

// wait waits for the end and gives the error that it was, with the last words.
func (c *command) wait(ctx context.Context) error {
	select {
	case <-c.ended:
		return c.failure()
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("%s: %w", c.name, ctx.Err()), c.Stop())
	}
}

func (c *command) failure() error {
	if c.err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w: %s", c.name, c.err, c.said)
}

// Stop ends the command, and waits for that and the end of what it leaves.
func (c *command) Stop() error {
	if err := c.kill(); err != nil || c.leaves == nil {
		return err
	}
	leaves := c.leaves
	c.leaves = nil
	defer leaves.Close()
	err := leaves.SetReadDeadline(time.Now().Add(patience))
	if err == nil {
		_, err = io.Copy(io.Discard, leaves)
	}
	if err != nil {
		return fmt.Errorf("wait for what %s leaves: %w", c.name, err)
	}
	return nil
}

func (c *command) kill() error {
	select {
	case <-c.ended:
		return nil
	default:
	}
	if err := c.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end %s: %w", c.name, err)
	}
	select {
	case <-c.ended:
		return nil
	case <-time.After(patience):
		return fmt.Errorf("%s (pid %d) does not end", c.name, c.cmd.Process.Pid)
	}
}

// settle gives the command some time to end by itself, then ends it.
func (c *command) settle() error {
	select {
	case <-c.ended:
	case <-time.After(patience):
	}
	return c.Stop()
}

// A tail keeps the end of what is written to it.
type tail struct {
	mu   sync.Mutex
	text []byte // guarded by mu
}

func (t *tail) Write(p []byte) (int, error) {
	const most = 2000
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	t.text = t.text[max(len(t.text)-most, 0):]
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.text))
}

// A handle is a process that others made, held by a pidfd so that no other one
// can be mistaken for it.
type handle struct {
	pid, fd int
}

// holdDescendant takes hold of a process if it is a descendant of ours.
func holdDescendant(pid int) (*handle, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("pid %d: %w", pid, err)
	}
	for at := pid; at != os.Getpid(); {
		parent, err := parentOf(at)
		if err == nil && parent <= 1 {
			err = errors.New("it is no descendant of this process")
		}
		if err != nil {
			unix.Close(fd)
			return nil, fmt.Errorf("pid %d: %w", pid, err)
		}
		at = parent
	}
	return &handle{pid: pid, fd: fd}, nil
}

func (h *handle) signal(sig syscall.Signal) error {
	if err := unix.PidfdSendSignal(h.fd, sig, nil, 0); err != nil {
		return fmt.Errorf("send %v to pid %d: %w", sig, h.pid, err)
	}
	return nil
}

// end kills the process, waits until it is gone, and reaps it if it is ours.
func (h *handle) end() error {
	defer unix.Close(h.fd)
	if err := h.signal(syscall.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	fds := []unix.PollFd{{Fd: int32(h.fd), Events: unix.POLLIN}}
	deadline := time.Now().Add(patience)
	for {
		n, err := unix.Poll(fds, int(time.Until(deadline).Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for pid %d: %w", h.pid, err)
		case n == 0:
			return fmt.Errorf("pid %d does not end", h.pid)
		default:
			_, _ = unix.Wait4(h.pid, nil, unix.WNOHANG, nil) // ECHILD: its parent is another
			return nil
		}
	}
}

// parentOf reads a process's parent from /proc/PID/stat, whose second field
// may hold anything, parentheses too.
func parentOf(pid int) (int, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 2 {
		return 0, fmt.Errorf("/proc/%d/stat: no parent in it", pid)
	}
	return strconv.Atoi(fields[1])
}
