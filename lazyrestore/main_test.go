package lazyrestore_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// The tests of this package run real processes under the real kernel. Most of
// them play a scene of testdata/subject: a program that builds some state, is
// checkpointed and restored, and looks itself whether the state is still there.

// roleEnv makes this test binary one of its helpers.
const roleEnv = "LAZYRESTORE_TEST_ROLE"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		os.Exit(playRole(role))
	}
	// Descriptors that a shell or a CI runner left open would be inherited by
	// the subjects, as state that no restore can know.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := ownMounts(); err != nil {
		fmt.Fprintf(os.Stderr, "mounts of the tests' own: %v\n", err)
		os.Exit(1)
	}
	// The processes of a restore that was killed become ours, and their ids are
	// free as soon as we have waited for them: init may take seconds for that.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if subjectDir != "" {
		os.RemoveAll(subjectDir)
	}
	os.Exit(code)
}

// ownMounts runs the tests, from the start, in a mount namespace in which what
// they mount spreads to the processes that they restore, as it does on a
// machine of systemd's. What other packages' tests mount meanwhile is not seen.
func ownMounts() error {
	const mark = "LAZYRESTORE_TEST_OWN_MOUNTS"
	if os.Getenv(mark) != "" {
		return os.Unsetenv(mark)
	}
	runtime.LockOSThread() // whose namespace exec keeps
	defer runtime.UnlockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		if errors.Is(err, unix.EPERM) {
			return nil // not root: needAll skips what would need it
		}
		return err
	}
	for _, spread := range []uintptr{unix.MS_PRIVATE, unix.MS_SHARED} {
		if err := unix.Mount("", "/", "", spread|unix.MS_REC, ""); err != nil {
			return err
		}
	}
	return unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), mark+"=1"))
}

// raceEnabled is set where the race detector is built in, with which a test takes
// two or three times as long.
var raceEnabled bool

// needAll skips a test that needs processes to checkpoint and restore, where
// that cannot be.
func needAll(t testing.TB) {
	t.Helper()
	uffdtest.Need(t, "uffd", "ptrace", "root", "pagemap_scan", "cmd:gcc")
}

var subjectDir string

// subjectProgram builds testdata/subject, once.
var subjectProgram = sync.OnceValues(func() (string, error) {
	sources, err := filepath.Glob("testdata/subject/*.c")
	if err != nil {
		return "", err
	}
	if subjectDir, err = os.MkdirTemp("", "lazyrestore-subject-"); err != nil {
		return "", err
	}
	if err := os.Chmod(subjectDir, 0o755); err != nil {
		return "", err
	}
	out := filepath.Join(subjectDir, "subject")
	args := append(append([]string{"-O2", "-g", "-Wall", "-Werror", "-D_GNU_SOURCE", "-pthread", "-o", out}, sources...), "-lm")
	if text, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("gcc: %w\n%s", err, text)
	}
	return out, nil
})

// self is a command that runs this test binary in a role, with arguments that
// the role decodes.
func self(t testing.TB, role string, arguments any) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(arguments)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, string(text))
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	return cmd
}

// playRole is main of the helpers.
func playRole(role string) int {
	runtime.LockOSThread() // a parent-death signal is a thread's
	roles := map[string]func(arguments []byte) error{
		"checkpoint": roleCheckpoint,
		"restore":    roleRestore,
		"serve":      roleServe,
		"trace":      roleTrace,
	}
	play := roles[role]
	if play == nil || len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "no role", role)
		return 2
	}
	if err := play([]byte(os.Args[1])); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
