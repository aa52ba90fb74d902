// Package criutest has a real CRIU dump and restore real processes, for tests.
package criutest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// Patience is how long anything may take.
const Patience = 60 * time.Second

// find is the arguments that run CRIU: what bench/criu/install.sh installs, or
// the one in PATH. Debian 12's own is too old for kernels with a new vDSO.
var find = sync.OnceValues(func() ([]string, error) {
	path, err := exec.LookPath("criu")
	if cache, cacheErr := os.UserCacheDir(); cacheErr == nil {
		ours := filepath.Join(cache, "lazyrestore", "criu", "criu")
		if _, statErr := os.Stat(ours); statErr == nil {
			path, err = ours, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w; bench/criu/install.sh installs one", err)
	}
	if out, err := exec.Command(path, "check").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%s check: %w: %s", path, err, out)
	}
	return []string{path}, nil
})

// Need skips the test where no CRIU works, or fails it where one is required.
func Need(t testing.TB) {
	t.Helper()
	uffdtest.Need(t, "uffd", "root", "cmd:gcc")
	uffdtest.NeedFunc(t, "criu", func() error {
		_, err := find()
		return err
	})
}

// Main runs a package's tests. Restored processes become its children, so that
// it sees how they end; and they inherit nothing that was left open.
func Main(m *testing.M) int {
	if err := errors.Join(
		unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0),
		unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC),
	); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if programDir != "" {
		os.RemoveAll(programDir)
	}
	return code
}

// Command is a CRIU command.
func Command(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	argv, err := find()
	if err != nil {
		t.Fatal(err)
	}
	return exec.Command(argv[0], append(argv[1:], args...)...)
}

// Run runs a CRIU command to its end, which must be a good one. log is the
// file that it was told to log to, and is shown if it is not.
func Run(t testing.TB, log string, args ...string) {
	t.Helper()
	cmd := Command(t, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	timer := time.AfterFunc(Patience, func() {
		if cmd.Process != nil {
			_ = cmd.Process.Kill()
		}
	})
	defer timer.Stop()
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(log)
		t.Fatalf("criu %q: %v\n%s\n%s", args, err, out.Bytes(), tail(text))
	}
}

// tail is the end of a log.
func tail(text []byte) []byte { return text[max(0, len(text)-4000):] }

var programDir string

// program builds testdata/subject.c, once.
var program = sync.OnceValues(func() (string, error) {
	var err error
	if programDir, err = os.MkdirTemp("", "lazyrestore-criutest-"); err != nil {
		return "", err
	}
	out := filepath.Join(programDir, "subject")
	return out, build(out)
})

// build builds testdata/subject.c.
func build(out string, flags ...string) error {
	source, err := sourceFile()
	if err != nil {
		return err
	}
	args := append([]string{"-O2", "-Wall", "-Werror", "-D_GNU_SOURCE", "-pthread", "-o", out, source}, flags...)
	if text, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("gcc: %w\n%s", err, text)
	}
	return nil
}

// A Subject is a process of testdata/subject.c, before its dump and after.
type Subject struct {
	Pid int
	dir string // where it looks and writes
	cmd *exec.Cmd
}

// Start starts a scene of testdata/subject.c with some MiB of memory, and waits
// until it has filled it.
func Start(t testing.TB, scene string, mib int) *Subject {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	s := &Subject{dir: t.TempDir()}
	s.cmd = exec.Command(path, scene, s.dir, strconv.Itoa(mib))
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.Pid = s.cmd.Process.Pid
	t.Cleanup(func() { killGroup(s.Pid) })
	s.Await(t, "ready")
	return s
}

// killGroup ends what is left of a subject and its children, and reaps it. The
// group has the subject's pid, which nothing else gets while it is a session's.
func killGroup(pid int) {
	_ = unix.Kill(-pid, unix.SIGKILL)
	for {
		if _, err := unix.Wait4(-pid, nil, 0, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// Tell makes a file that the subject waits for: "go", or "check".
func (s *Subject) Tell(t testing.TB, name string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Await waits for a file that the subject makes.
func (s *Subject) Await(t testing.TB, name string) {
	t.Helper()
	for end := time.Now().Add(Patience); ; time.Sleep(time.Millisecond) {
		_, err := os.Stat(filepath.Join(s.dir, name))
		if err == nil {
			return
		}
		if !errors.Is(err, fs.ErrNotExist) || time.Now().After(end) || s.wrong() != "" {
			t.Fatalf("subject did not come to %q: %v; %s", name, err, s.wrong())
		}
	}
}

// wrong is what the subject found wrong.
func (s *Subject) wrong() string {
	b, _ := os.ReadFile(filepath.Join(s.dir, "wrong"))
	return string(b)
}

// Dump dumps the subject with CRIU, which ends it, and waits until its pid is
// free again.
func (s *Subject) Dump(t testing.TB, images string, args ...string) {
	t.Helper()
	args = append([]string{"dump", "-t", strconv.Itoa(s.Pid), "-D", images, "-v4", "-o", "dump.log"}, args...)
	Run(t, filepath.Join(images, "dump.log"), args...)
	if err := s.cmd.Wait(); err == nil {
		t.Fatal("the subject ended by itself")
	}
	for {
		if _, err := unix.Wait4(-s.Pid, nil, 0, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return // its children, which became ours
		}
	}
}

// Restore restores the subject with CRIU and lets it run on as our child.
func (s *Subject) Restore(t testing.TB, images string, args ...string) {
	t.Helper()
	args = append([]string{"restore", "-d", "-D", images, "-v4", "-o", "restore.log"}, args...)
	Run(t, filepath.Join(images, "restore.log"), args...)
}

// Wait waits for the restored subject's end. What is wrong with its memory fails
// the test.
func (s *Subject) Wait(t testing.TB) {
	t.Helper()
	timer := time.AfterFunc(Patience, func() { _ = unix.Kill(-s.Pid, unix.SIGKILL) })
	defer timer.Stop()
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(s.Pid, &status, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			t.Fatalf("wait for the subject: %v", err)
		}
		break
	}
	if !status.Exited() || status.ExitStatus() != 0 {
		t.Fatalf("the subject ended with status %#x: %s", uint32(status), s.wrong())
	}
	if w := s.wrong(); w != "" {
		t.Fatal(w)
	}
}
