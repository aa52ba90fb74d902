package proc

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLoopCode(t *testing.T) {
	trap, sig, exit := LoopCode(EndTrap), LoopCode(EndSignal), LoopCode(EndExit)
	for name, code := range map[string][]byte{"trap": trap, "signal": sig, "exit": exit} {
		if len(code) < 60 || len(code) > 200 {
			t.Errorf("%s: %d bytes", name, len(code))
		}
		// The last instruction is int3.
		if code[len(code)-1] != 0xcc {
			t.Errorf("%s: ends in %x", name, code[len(code)-8:])
		}
	}
	// All loops are the same up to their endings, also in jump distances.
	if common := len(trap) - 1; !bytes.Equal(trap[:common], sig[:common]) || !bytes.Equal(trap[:common], exit[:common]) {
		t.Errorf("loops differ:\n%x\n%x\n%x", trap, sig, exit)
	}
	if n := bytes.Count(sig, []byte{0x0f, 0x05}); n != 3 {
		t.Errorf("the loop with a signal has %d SYSCALLs, want 3", n)
	}
}

// arena is memory for arguments with a method that fails the test.
type arena struct {
	*Arena
	t *testing.T
}

func newArena(t *testing.T) arena {
	t.Helper()
	a, err := NewArena(1 << 16)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return arena{a, t}
}

func (a arena) str(s string) uint64 {
	addr, err := a.String(s)
	if err != nil {
		a.t.Fatal(err)
	}
	return addr
}

func (a arena) strs(s ...string) uint64 {
	addr, err := a.Strings(s)
	if err != nil {
		a.t.Fatal(err)
	}
	return addr
}

// waitExit waits for a child and gives its status.
func waitExit(t *testing.T, pid int) unix.WaitStatus {
	t.Helper()
	var st unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &st, 0, nil)
		if !errors.Is(err, unix.EINTR) {
			if err != nil {
				t.Fatal(err)
			}
			return st
		}
	}
}

func TestCloneExec(t *testing.T) {
	a := newArena(t)
	argv := a.strs("sh", "-c", `test "$X" = yes && exit 42`)
	envp := a.strs("X=yes")
	child, pidfd, err := CloneExec([]Call{
		{NR: unix.SYS_SETSID},
		{NR: unix.SYS_CLOSE | MayFail, Args: [6]uint64{9999}},
		{NR: unix.SYS_EXECVE, Args: [6]uint64{a.str("/bin/sh"), argv, envp}},
		{NR: unix.SYS_EXIT_GROUP, Args: [6]uint64{127}},
	}, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	if err := unix.PidfdSendSignal(pidfd, 0, nil, 0); err != nil {
		t.Errorf("pidfd: %v", err)
	}
	if st := waitExit(t, child); st.ExitStatus() != 42 {
		t.Errorf("status %v, want 42", st)
	}
}

// freePID is an id that no process has just now, nor is soon given: they are given in turn.
func freePID(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		t.Fatal(err)
	}
	limit, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	for pid := limit - 1; pid > limit-2000; pid-- {
		if errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			return pid
		}
	}
	t.Fatal("no free process id")
	return 0
}

func TestCloneExecPID(t *testing.T) {
	a := newArena(t)
	table := []Call{{NR: unix.SYS_EXECVE, Args: [6]uint64{a.str("/bin/true"), a.strs("true"), a.strs()}}}
	want := freePID(t)
	child, pidfd, err := CloneExec(table, want, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(pidfd)
	waitExit(t, child)
	if child != want {
		t.Errorf("child is %d, want %d", child, want)
	}
	var taken *PIDTakenError
	if _, _, err := CloneExec(table, os.Getpid(), 0); !errors.As(err, &taken) || taken.PID != os.Getpid() {
		t.Errorf("a taken id: %v", err)
	}
}

func TestCloneExecFails(t *testing.T) {
	a := newArena(t)
	execve := func(path string) Call {
		return Call{NR: unix.SYS_EXECVE, Args: [6]uint64{a.str(path), a.strs("x"), a.strs()}}
	}
	for _, tt := range []struct {
		name  string
		table []Call
		index int
		errno unix.Errno
	}{
		{"call", []Call{{NR: unix.SYS_CLOSE, Args: [6]uint64{9999}}, execve("/bin/true")}, 0, unix.EBADF},
		{"execve", []Call{{NR: unix.SYS_GETPID}, execve("/does/not/exist")}, 1, unix.ENOENT},
		{"execve that may fail", []Call{
			{NR: unix.SYS_EXECVE | MayFail, Args: execve("/does/not/exist").Args},
			{NR: unix.SYS_EXIT_GROUP, Args: [6]uint64{3}},
		}, 0, unix.ENOENT},
		{"traced", []Call{
			{NR: unix.SYS_PTRACE, Args: [6]uint64{unix.PTRACE_TRACEME}},
			{NR: unix.SYS_CLOSE, Args: [6]uint64{9999}},
			execve("/bin/true"),
		}, 1, unix.EBADF},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := CloneExec(tt.table, 0, 0)
			var call *CallError
			if !errors.As(err, &call) || call.Index != tt.index || call.Errno != tt.errno {
				t.Errorf("error %v, want call %d: %v", err, tt.index, tt.errno)
			}
		})
	}
	if _, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); !errors.Is(err, unix.ECHILD) {
		t.Errorf("a child was left behind: %v", err)
	}
	if _, _, err := CloneExec([]Call{{NR: unix.SYS_GETPID}}, 0, 0); err == nil {
		t.Error("a table without execve gave no error")
	}
}
