package main

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// A user other than root, with three capabilities, has a process of its own written to
// an image, and run again. Without them check says which are missing, and for what.
func TestUserWithCapabilities(t *testing.T) {
	uffdtest.Need(t, "uffd", "ptrace", "root")
	dir, err := os.MkdirTemp("", "nobody")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	as := func(cmd *exec.Cmd, caps ...uintptr) *exec.Cmd {
		cmd.Dir, cmd.Stderr = dir, testWriter{t}
		cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+dir)
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, AmbientCaps: caps, Setsid: true,
		}
		return cmd
	}
	command := func(args []string, caps ...uintptr) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe") // whatever the directories that lead to it allow
		cmd.Args = append([]string{"lazyrestore"}, args...)
		return as(cmd, caps...)
	}
	needed := []uintptr{unix.CAP_SYS_PTRACE, unix.CAP_CHECKPOINT_RESTORE, unix.CAP_SYS_NICE}

	if err := unix.CloseRange(3, 1<<20, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	sleep := as(exec.Command("sleep", "1000"))
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer sleep.Process.Kill()
	pid := itoa(sleep.Process.Pid)

	scope, err := readWord(ptraceScope)
	if err != nil {
		scope = "0"
	}

	// One is missing.
	for i := range needed {
		caps := append(append([]uintptr{}, needed[:i]...), needed[i+1:]...)
		out, err := command([]string{"check", "--json"}, caps...).Output()
		var r checkReport
		if jsonErr := json.Unmarshal(out, &r); jsonErr != nil || exitCode(err) != 5 {
			t.Errorf("check without capability %d: %v, %v", needed[i], err, jsonErr)
		}
		// A checkpoint of a process of the same user does without CAP_SYS_PTRACE, unless Yama forbids it.
		ptrace, nice := needed[i] == unix.CAP_SYS_PTRACE && scope == "0", needed[i] == unix.CAP_SYS_NICE
		if r.Checkpoint != ptrace || r.Restore != nice {
			t.Errorf("check without capability %d: checkpoint works: %v, restore works: %v", needed[i], r.Checkpoint, r.Restore)
		}
		err = command([]string{"checkpoint", "-R", "-D", "img-" + itoa(i), pid}, caps...).Run()
		if want := map[bool]int{true: 0, false: 5}[ptrace]; exitCode(err) != want {
			t.Errorf("a checkpoint without capability %d: exit code %d, want %d", needed[i], exitCode(err), want)
		}
	}

	if err := command([]string{"checkpoint", "-D", "img", pid}, needed...).Run(); err != nil {
		t.Fatal(err)
	}
	sleep.Wait()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	restore := command([]string{"restore", "--json-fd", "3", "img"}, needed...)
	restore.ExtraFiles = []*os.File{write}
	if err := restore.Start(); err != nil {
		t.Fatal(err)
	}
	write.Close()
	var r lazyrestore.RestoreResult
	if err := json.NewDecoder(read).Decode(&r); err != nil || itoa(r.PID) != pid {
		t.Errorf("restored as %d, want %s: %v", r.PID, pid, err)
	}
	if err := restore.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got, want := exitCode(restore.Wait()), 128+int(unix.SIGTERM); got != want {
		t.Errorf("exit code %d, want %d", got, want)
	}
}

const nobody = 65534

func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return -1
}
