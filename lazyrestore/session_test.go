package lazyrestore_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore"
)

// statField is a field of /proc/PID/stat, counted from 1; see proc(5).
func statField(t testing.TB, pid, n int) string {
	t.Helper()
	stat := string(must(os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat")))(t))
	return strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])[n-3]
}

// withoutTerminal reports whether this process has no controlling terminal;
// where it has one, the test is run again in a session that has none.
func withoutTerminal(t *testing.T) bool {
	t.Helper()
	if statField(t, os.Getpid(), 7) == "0" {
		return true
	}
	cmd := exec.Command(must(os.Executable())(t), "-test.run=^"+t.Name()+"$")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}

func TestSessionSurvives(t *testing.T) {
	needAll(t)
	if !withoutTerminal(t) {
		return
	}
	leader := exec.Command("/bin/sleep", "100")
	leader.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := leader.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = leader.Process.Kill(); _ = leader.Wait() })
	gone := exec.Command("/bin/sleep", "100")
	gone.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := gone.Start(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		attr syscall.SysProcAttr
		want []string
	}{
		{"session leader", syscall.SysProcAttr{Setsid: true}, nil},
		{"group leader", syscall.SysProcAttr{Setpgid: true}, nil},
		{"our group", syscall.SysProcAttr{}, nil},
		{"another group", syscall.SysProcAttr{Setpgid: true, Pgid: leader.Process.Pid}, nil},
		{"group is gone", syscall.SysProcAttr{Setpgid: true, Pgid: gone.Process.Pid}, []string{"new-group"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := launch(t, startWith{scene: "session", args: c.want, attr: &c.attr})
			s.ready(1)
			s.checkpoint(plainest)
			if c.name == "group is gone" {
				_ = gone.Process.Kill()
				_ = gone.Wait()
			}
			s.restore(filling)
			s.release()
			s.well()
		})
	}
}

// What init starts is in a session that has no number, here or in a pid
// namespace: so is what comes back there.
func TestSessionWithoutNumberSurvives(t *testing.T) {
	needAll(t)
	cmd := exec.Command("unshare", "--pid", "--fork", "--mount-proc",
		must(os.Executable())(t), "-test.run=^TestSessionSurvives$", "-test.v")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestSessionSurvives") {
		t.Errorf("%v\n%s", err, out)
	}
}

// A process of a session that we are not in, which may be gone, leads one.
func TestNewSessionWhereTheOldIsGone(t *testing.T) {
	t.Parallel()
	shell := []string{"-c", fmt.Sprintf("%s session new & wait", must(subjectProgram())(t))}
	s := launch(t, startWith{scene: shell[0], args: shell[1:], exe: "/bin/sh"})
	s.pid = must(strconv.Atoi(s.says(`pid (\d+)`)[1]))(t)
	s.ready(1)
	if statField(t, s.pid, 6) == strconv.Itoa(s.pid) {
		t.Fatal("it leads a session already")
	}
	s.cycle(plainest, filling)
	s.release()
	s.well()
}

// With a stack without bound mappings grow upwards, in the restored process too.
func TestLayoutSurvives(t *testing.T) {
	t.Parallel()
	line := "ulimit -s unlimited && exec " + must(subjectProgram())(t) + " layout"
	s := launch(t, startWith{scene: "-c", args: []string{line}, exe: "/bin/sh"})
	s.ready(1)
	s.cycle(plainest, filling)
	s.release()
	s.well()
}

// A process that job control has stopped is stopped when it comes back, and
// has not run an instruction: its first needs memory that is missing.
func TestStoppedProcessSurvives(t *testing.T) {
	t.Parallel()
	s := start(t, "counting")
	stopped := func() {
		t.Helper()
		s.await("stop", func() bool { return statField(t, s.pid, 3) == "T" })
	}
	signal := func(sig unix.Signal) {
		t.Helper()
		if err := unix.Kill(s.pid, sig); err != nil {
			t.Fatal(err)
		}
	}
	signal(unix.SIGSTOP)
	stopped()
	s.checkpoint(lazyrestore.CheckpointOptions{LeaveRunning: true})
	stopped() // a checkpoint leaves it so
	s.checkpoint(plainest)
	s.restore(lazily)
	stopped()
	if faults := s.proc.Stats().Faults; faults != 0 {
		t.Errorf("%d pages were touched while it was stopped", faults)
	}
	s.cycle(plainest, lazily) // and again from there
	stopped()
	signal(unix.SIGCONT)
	s.await("run", func() bool { return statField(t, s.pid, 3) != "T" })
	s.release()
	s.well()
}

// code32 is a program of 32-bit code, without a library.
const code32 = `
static int call(int number, int a, const void *b, int c)
{
	int result;
	__asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
	return result;
}

void _start(void)
{
	call(4, 1, "ready 1\n", 8);
	for (;;)
		call(29, 0, 0, 0); /* pause */
}
`

func TestRefuses32BitCode(t *testing.T) {
	t.Parallel()
	needAll(t)
	exe := filepath.Join(t.TempDir(), "program")
	gcc := exec.Command("gcc", "-m32", "-O1", "-nostdlib", "-static", "-fno-pie", "-no-pie", "-x", "c", "-o", exe, "-")
	gcc.Stdin = strings.NewReader(code32)
	if out, err := gcc.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s := launch(t, startWith{exe: exe})
	s.ready(1)
	if err := s.refused(false); !contains(err.Error(), "32-bit code") {
		t.Error(err)
	}
	s.await("pause again", func() bool { return statField(t, s.pid, 3) == "S" })
}
