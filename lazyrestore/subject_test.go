package lazyrestore_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// patience bounds every wait of these tests: it is for what will never come.
const patience = time.Minute

// A subject is one run of testdata/subject through all its lives: started by
// the test, and later restored.
type subject struct {
	t     testing.TB
	dir   string // its working directory, with its output in the file out
	pid   int
	cmd   *exec.Cmd            // of the first life
	proc  *lazyrestore.Process // of a later life in this process
	image string               // of the last checkpoint
	last  *lazyrestore.CheckpointResult
	count int // of checkpoints
	stops int // of stops that were let go
	away  *absence
}

// An absence is how long a subject and its twins were not there, or stood still.
type absence struct {
	since time.Time // the beginning of the last checkpoint
	all   time.Duration
}

// over adds the time since the last checkpoint began.
func (a *absence) over() { a.all += time.Since(a.since) }

// startWith are the wishes of a start.
type startWith struct {
	scene string
	args  []string
	env   []string
	files []*os.File // from descriptor 3 on
	cred  *syscall.Credential
	exe   string // another executable; empty: the subject
	stdin *os.File
	cwd   string                         // empty: a directory of its own
	attr  *syscall.SysProcAttr           // nil: a session of its own, and cred
	lay   func(t testing.TB, dir string) // its files; nil: none
}

// start runs a scene to its first stop.
func start(t testing.TB, scene string, args ...string) *subject {
	t.Helper()
	s := launch(t, startWith{scene: scene, args: args})
	s.ready(1)
	return s
}

// launch runs a scene. The process is ended with the test.
func launch(t testing.TB, with startWith) *subject {
	t.Helper()
	needAll(t)
	exe, err := subjectProgram()
	if err != nil {
		t.Fatal(err)
	}
	if with.exe != "" {
		exe = with.exe
	}
	s := &subject{t: t, dir: with.cwd, away: &absence{}}
	if s.dir == "" {
		s.dir = t.TempDir()
	}
	for _, dir := range []string{filepath.Dir(s.dir), s.dir} {
		if err := os.Chmod(dir, 0o777); err != nil { // for subjects of other users
			t.Fatal(err)
		}
	}
	if with.lay != nil {
		with.lay(t, s.dir)
	}
	out, err := os.OpenFile(filepath.Join(s.dir, "out"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	s.cmd = exec.Command(exe, append([]string{with.scene}, with.args...)...)
	s.cmd.Dir, s.cmd.Stdout, s.cmd.Stderr = s.dir, out, out
	s.cmd.Env = append([]string{"PATH=/usr/bin:/bin", "SCENE=" + with.scene}, with.env...)
	s.cmd.ExtraFiles = with.files
	if with.stdin != nil {
		s.cmd.Stdin = with.stdin
	}
	s.cmd.SysProcAttr = with.attr
	if with.attr == nil {
		s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: with.cred}
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.pid = s.cmd.Process.Pid
	t.Cleanup(s.end)
	return s
}

// end ends whatever life the subject is in. Only a child of this process is
// sent a signal: a process id alone may be somebody else's by now.
func (s *subject) end() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		s.cmd = nil
	}
	s.endRestored()
}

func (s *subject) endRestored() {
	if s.proc == nil {
		return
	}
	_ = s.proc.Signal(unix.SIGKILL)
	_, _ = s.proc.Wait()
	_ = s.proc.Close()
	s.proc = nil
}

func (s *subject) output() string {
	text, err := os.ReadFile(filepath.Join(s.dir, "out"))
	if err != nil {
		s.t.Fatal(err)
	}
	return string(text)
}

// ready waits for a stop by its number.
func (s *subject) ready(stop int) {
	s.t.Helper()
	s.says(`(?m)^ready ` + strconv.Itoa(stop) + `$`)
	// What it says is seen before the write has returned; then it sleeps.
	s.await("sleep", func() bool {
		stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(s.pid), "stat"))
		_, after, _ := strings.Cut(string(stat), ") ")
		return err == nil && strings.HasPrefix(after, "S")
	})
}

// says waits for output that matches, and gives the matches.
func (s *subject) says(pattern string) []string {
	s.t.Helper()
	re := regexp.MustCompile(pattern)
	var match []string
	s.await("say "+pattern, func() bool {
		match = re.FindStringSubmatch(s.output())
		return match != nil
	})
	return match
}

// await waits until something is done, which the subject may not end before.
func (s *subject) await(what string, done func() bool) {
	s.t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
			if !done() && s.cmd != nil && ended(s.t, s.pid, 0) && !done() {
				s.t.Fatalf("waiting for it to %s, the subject ended; it said:\n%s", what, s.output())
			}
		case <-deadline:
			s.t.Fatalf("the subject did not %s in time; it said:\n%s", what, s.output())
		}
	}
}

// touch makes a file that the subject waits for.
func (s *subject) touch(name string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), nil, 0o666); err != nil {
		s.t.Fatal(err)
	}
}

// release lets the subject go on from the stop at which it is.
func (s *subject) release() {
	s.t.Helper()
	s.stops++
	s.touch("go" + strconv.Itoa(s.stops))
}

// checkpoint makes an image, and the process is gone then.
func (s *subject) checkpoint(opts lazyrestore.CheckpointOptions) {
	s.t.Helper()
	s.tryCheckpoint(&opts)
	if !opts.LeaveRunning {
		s.gone()
	}
}

// tryCheckpoint is checkpoint without a look at what became of the process.
func (s *subject) tryCheckpoint(opts *lazyrestore.CheckpointOptions) {
	s.t.Helper()
	s.count++
	s.image = filepath.Join(s.dir, "image-"+strconv.Itoa(s.count))
	opts.Dir = s.image
	if opts.Codec == "" {
		opts.Codec = "lz4"
	}
	s.away.since = time.Now()
	res, err := lazyrestore.Checkpoint(s.t.Context(), s.pid, *opts)
	if err != nil {
		s.t.Fatalf("checkpoint: %v", err)
	}
	if opts.LeaveRunning {
		s.away.over()
	}
	s.last = res
}

// ended waits until a child of this process has ended, and leaves it to be
// waited for. Nobody may wait for a child while a tracer of this process has
// it: the stops would go to whoever waits.
func ended(t testing.TB, pid int, atMost time.Duration) bool {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return true // a checkpoint has waited for it
	}
	if err != nil {
		t.Fatalf("open process %d: %v", pid, err)
	}
	defer unix.Close(fd)
	return uffdtest.Readable(fd, atMost)
}

// gone waits for the end of the process that a checkpoint has ended. Since it
// is a child of this process, its tracer has waited for it.
func (s *subject) gone() {
	s.t.Helper()
	if !ended(s.t, s.pid, patience) {
		s.t.Fatal("the process is still there after its checkpoint")
	}
	s.close()
}

// close gives up a process that has ended.
func (s *subject) close() {
	s.t.Helper()
	if s.cmd != nil {
		_ = s.cmd.Wait()
		s.cmd = nil
	}
	if s.proc == nil {
		return
	}
	_, _ = s.proc.Wait() // for what a checkpoint has left of it
	if err := s.proc.Close(); err != nil {
		s.t.Errorf("close the restored process: %v", err)
	}
	s.proc = nil
}

// restore brings the subject back from its last image.
func (s *subject) restore(opts lazyrestore.RestoreOptions) {
	s.t.Helper()
	if err := s.tryRestore(opts); err != nil {
		s.t.Fatalf("restore: %v", err)
	}
	if s.proc.PID() != s.pid {
		s.t.Fatalf("restored as process %d, it was %d", s.proc.PID(), s.pid)
	}
}

func (s *subject) tryRestore(opts lazyrestore.RestoreOptions) error {
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	p, err := lazyrestore.Restore(ctx, s.image, opts)
	if err == nil {
		s.proc = p
		s.away.over()
	}
	return err
}

// cycle is one checkpoint and restore.
func (s *subject) cycle(c lazyrestore.CheckpointOptions, r lazyrestore.RestoreOptions) {
	s.t.Helper()
	s.checkpoint(c)
	s.restore(r)
}

// status waits for the end of the process.
func (s *subject) status() unix.WaitStatus {
	s.t.Helper()
	if !ended(s.t, s.pid, patience) {
		s.t.Fatalf("the process does not end; it said:\n%s", s.output())
	}
	if s.proc == nil {
		_ = s.cmd.Wait() // the status is in ProcessState
		return unix.WaitStatus(s.cmd.ProcessState.Sys().(syscall.WaitStatus))
	}
	status, err := s.proc.Wait()
	if err != nil {
		s.t.Fatal(err)
	}
	return status
}

// well waits for the end, and fails the test unless the subject found all of
// its state.
func (s *subject) well() {
	s.t.Helper()
	status := s.status()
	said := s.output()
	s.sleptEnough(said)
	if strings.Contains(said, "lost: ") || !status.Exited() || status.ExitStatus() != 0 {
		s.t.Fatalf("exit status %d, signal %v; it said:\n%s", status.ExitStatus(), status.Signal(), said)
	}
	s.close()
}

func contains(text, part string) bool { return strings.Contains(text, part) }
