package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/cmd/internal/verb"
	"github.com/lazyrestore/lazyrestore/lazyrestore"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// lazyrestoreCommand is the command itself, in a process of its own.
func lazyrestoreCommand(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Args = append([]string{"lazyrestore"}, args...)
	cmd.Stderr = testWriter{t}
	return cmd
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

// sleeper is an image of a process that sleeps for long, and its pid, which is
// free.
func sleeper(t *testing.T) (img string, pid int) {
	t.Helper()
	return sleeperWith(t, syscall.SysProcAttr{Setsid: true})
}

func sleeperWith(t *testing.T, attr syscall.SysProcAttr) (img string, pid int) {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &attr
	return imageOf(t, cmd, sleeping)
}

// imageOf is an image of a program that was taken in a system call that lasts; see within.
func imageOf(t *testing.T, cmd *exec.Cmd, call string) (img string, pid int) {
	t.Helper()
	uffdtest.Need(t, "uffd", "ptrace", "root")
	// What whoever runs the tests has open is not the business of sleep.
	if err := unix.CloseRange(3, 1<<20, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	within(t, cmd.Process.Pid, call)
	img = filepath.Join(t.TempDir(), "img")
	checkpoint := lazyrestoreCommand(t, "checkpoint", "--json", "-D", img, strconv.Itoa(cmd.Process.Pid))
	out, err := checkpoint.Output()
	if err != nil {
		t.Fatal(err)
	}
	var r lazyrestore.CheckpointResult
	if err := json.Unmarshal(out, &r); err != nil || r.Image != img || r.Threads != 1 {
		t.Fatalf("checkpoint printed %s: %v", out, err)
	}
	return img, cmd.Process.Pid
}

// asleep waits until a process sleeps: one that has just been exec'ed has no memory yet that would be lazy.
func asleep(t *testing.T, pid int) {
	t.Helper()
	within(t, pid, sleeping)
}

// sleeping is how the call of one that sleeps begins; see within.
var sleeping = strconv.Itoa(unix.SYS_CLOCK_NANOSLEEP) + " "

// within waits until a process is in a system call whose line in /proc/PID/syscall begins so.
func within(t *testing.T, pid int, want string) {
	t.Helper()
	for limit := time.Now().Add(uffdtest.Timeout); ; time.Sleep(time.Millisecond) {
		call, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/syscall")
		switch {
		case err != nil:
			t.Fatal(err)
		case strings.HasPrefix(string(call), want):
			return
		case time.Now().After(limit):
			t.Fatalf("process %d is not in call %s but: %s", pid, want, call)
		}
	}
}

// end kills a process that is not our child, and waits for its end.
func end(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatalf("process %d does not run: %v", pid, err)
	}
	defer unix.Close(fd)
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if !uffdtest.Readable(fd, uffdtest.Timeout) {
		t.Fatalf("process %d does not end", pid)
	}
}

func TestForegroundRestore(t *testing.T) {
	img, pid := sleeper(t)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	cmd := lazyrestoreCommand(t, "restore", "--json-fd", "3", img)
	cmd.ExtraFiles = []*os.File{write}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	write.Close()
	var r lazyrestore.RestoreResult
	if err := json.NewDecoder(read).Decode(&r); err != nil {
		t.Fatal(err)
	}
	if r.PID != pid {
		t.Errorf("the pid is %d, want %d", r.PID, pid)
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if got, want := cmd.ProcessState.ExitCode(), 128+int(unix.SIGTERM); got != want {
		t.Errorf("exit code %d, want %d", got, want)
	}
}

// Beside each other, each in a pid namespace of its own, restores of one image
// have signals passed on and end as their program does.
func TestForegroundRestoreInPIDNamespaces(t *testing.T) {
	img, pid := sleeper(t)
	var cmds []*exec.Cmd
	for range 3 {
		read, write, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer read.Close()
		cmd := lazyrestoreCommand(t, "restore", "--pid-ns", "--json-fd", "3", img)
		cmd.ExtraFiles = []*os.File{write}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		write.Close()
		cmds = append(cmds, cmd)
		var r lazyrestore.RestoreResult
		if err := json.NewDecoder(read).Decode(&r); err != nil {
			t.Fatal(err)
		}
		if r.InnerPID != pid || r.PID == pid {
			t.Errorf("pid %d, inside %d; want %d inside", r.PID, r.InnerPID, pid)
		}
		comm, err := os.ReadFile("/proc/" + itoa(r.PID) + "/comm")
		if err != nil || string(comm) != "sleep\n" {
			t.Errorf("process %d is %q: %v", r.PID, comm, err)
		}
	}
	for i, cmd := range cmds {
		// Not SIGHUP, which the program ignores if whoever tests was started by nohup.
		sig := []unix.Signal{unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2}[i]
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
		if got, want := cmd.ProcessState.ExitCode(), 128+int(sig); got != want {
			t.Errorf("exit code %d, want %d", got, want)
		}
	}
}

// A detached restore prints the pid by which the process is found here.
func TestDetachedRestoreInPIDNamespaces(t *testing.T) {
	img, inner := sleeper(t)
	seen := map[int]bool{inner: true}
	for range 2 {
		out, err := lazyrestoreCommand(t, "restore", "-d", "--pid-ns", img).Output()
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
		if err != nil || seen[pid] {
			t.Fatalf("printed %q", out)
		}
		seen[pid] = true
		status, err := os.ReadFile("/proc/" + itoa(pid) + "/status")
		if want := "NSpid:\t" + itoa(pid) + "\t" + itoa(inner) + "\n"; err != nil || !strings.Contains(string(status), want) {
			t.Errorf("its status does not have %q: %v", want, err)
		}
		defer end(t, pid)
	}
}

func TestDetachedRestore(t *testing.T) {
	img, pid := sleeper(t)
	dir := t.TempDir()
	pidfile, stats := filepath.Join(dir, "pid"), filepath.Join(dir, "stats")
	// Output reads to the end of the pipe: it would wait for ever if a process
	// that runs on held it.
	out, err := lazyrestoreCommand(t, "restore", "-d", "--pidfile", pidfile, "--stats", stats, img).Output()
	if err != nil {
		t.Fatal(err)
	}
	want := strconv.Itoa(pid) + "\n"
	if string(out) != want {
		t.Errorf("printed %q, want %q", out, want)
	}
	if text, err := os.ReadFile(pidfile); err != nil || string(text) != want {
		t.Errorf("pidfile %q, %v; want %q", text, err, want)
	}
	if session, err := unix.Getsid(pid); err != nil || session == sessionOfTest(t) {
		t.Errorf("session %d, %v: want another one than the test's", session, err)
	}

	// The pid is taken now.
	again := lazyrestoreCommand(t, "restore", "-d", "--json", img)
	object, err := os.Create(filepath.Join(t.TempDir(), "object")) // not a pipe: both processes have it
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(object.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	again.Stdout = object
	again.Run()
	object.Close()
	reopened, err := os.Open(object.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer reopened.Close()
	if err := unix.Flock(int(reopened.Fd()), unix.LOCK_EX); err != nil { // both have ended
		t.Fatal(err)
	}
	var f verb.Failure
	readJSON(t, object.Name(), &f)
	if code := again.ProcessState.ExitCode(); code != verb.Refused || f.Code != verb.Refused {
		t.Errorf("a taken pid: exit code %d, JSON %+v; want %d", code, f, verb.Refused)
	}

	// The pager leaves, and its statistics are there, while the process lives.
	appears(t, stats)
	if text, err := os.ReadFile(stats); err != nil || !strings.Contains(string(text), `"resident_ms"`) {
		t.Errorf("statistics %q, %v", text, err)
	}
	end(t, pid)
}

// Nobody is left who would learn of the process: whoever killed the command that asks for a
// detached restore has ended that, too.
func TestDetachedRestoreNobodyAwaits(t *testing.T) {
	img, pid := sleeper(t)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer write.Close()
	read.Close()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	detached := lazyrestoreCommand(t, "restore", "--"+reportFlag+"=3", img)
	detached.ExtraFiles = []*os.File{write, log}
	code := exitCode(detached.Run())
	if text, err := os.ReadFile(log.Name()); code == 0 || err != nil || !strings.Contains(string(text), "told that process "+itoa(pid)+" runs") {
		t.Errorf("exit code %d, %q, %v; want that nobody could be told", code, text, err)
	}
	if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("process %d is there: %v", pid, err)
		end(t, pid)
	}
}

// The pager is the parent of a detached process. One that is to get a signal when its
// parent ends keeps it.
func TestDetachedRestoreWithDeathSignal(t *testing.T) {
	runtime.LockOSThread() // with which the first life would end
	defer runtime.UnlockOSThread()
	img, pid := sleeperWith(t, syscall.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGTERM})
	stats := filepath.Join(t.TempDir(), "stats")
	if err := lazyrestoreCommand(t, "restore", "-d", "--stats", stats, img).Run(); err != nil {
		t.Fatal(err)
	}
	status, err := proc.ReadStatus(pid)
	if err != nil {
		t.Fatal(err)
	}
	parent, err := unix.PidfdOpen(status.PPid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(parent)
	appears(t, stats) // when all memory is there
	if uffdtest.Readable(parent, 300*time.Millisecond) {
		t.Error("the pager has left")
	}
	// It needs the image no longer, and answers nobody.
	socket := filepath.Join(lazyrestore.RunDir(), strconv.Itoa(pid)+".sock")
	for deadline := time.Now().Add(uffdtest.Timeout); ; time.Sleep(time.Millisecond) {
		if _, err := os.Lstat(socket); errors.Is(err, os.ErrNotExist) {
			break
		}
		if time.Now().After(deadline) {
			t.Errorf("%s is still there", socket)
			break
		}
	}
	if err := os.RemoveAll(img); err != nil {
		t.Fatal(err)
	}
	if err := lazyrestoreCommand(t, "checkpoint", "--leave-running", "-D", img, strconv.Itoa(pid)).Run(); err != nil {
		t.Errorf("another checkpoint: %v", err)
	}
	end(t, pid)
	if !uffdtest.Readable(parent, time.Minute) {
		t.Error("the process has ended, and the pager stays")
	}
}

// appears waits until a file that is renamed into place is there.
func appears(t *testing.T, path string) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(path), unix.IN_MOVED_TO); err != nil {
		t.Fatal(err)
	}
	events := make([]byte, 4096)
	for {
		if _, err := os.Stat(path); err == nil {
			return
		}
		if !uffdtest.Readable(fd, uffdtest.Timeout) {
			t.Fatalf("%s does not appear", path)
		}
		if _, err := unix.Read(fd, events); err != nil {
			t.Fatal(err)
		}
	}
}

func sessionOfTest(t *testing.T) int {
	t.Helper()
	sid, err := unix.Getsid(0)
	if err != nil {
		t.Fatal(err)
	}
	return sid
}

func TestDryRunStartsNothing(t *testing.T) {
	img, pid := sleeper(t)
	out, err := lazyrestoreCommand(t, "restore", "-n", "--json", img).Output()
	var r lazyrestore.RestoreResult
	if err != nil || json.Unmarshal(out, &r) != nil || r.PID != pid {
		t.Errorf("printed %q: %v", out, err)
	}
	if err := unix.Kill(pid, 0); err == nil {
		t.Errorf("process %d runs", pid)
		end(t, pid)
	}

	// What the pager would not serve is not found fit either.
	for _, object := range []string{"pages.zst", "pages.idx"} {
		path := filepath.Join(img, object)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, int64(len(text)/2)); err != nil {
			t.Fatal(err)
		}
		out, _ := lazyrestoreCommand(t, "restore", "-n", "--json", img).Output()
		var f verb.Failure
		if err := json.Unmarshal(out, &f); err != nil || f.Code != verb.Damaged {
			t.Errorf("half of %s is there: printed %q, %v", object, out, err)
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// A restore that a signal ends before its process runs says so once.
func TestInterruptedRestore(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "sock")
	l, err := net.Listen("unix", sock) // a page server that does not answer
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := lazyrestoreCommand(t, "restore", "unix://"+sock+"/image")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := exitCode(cmd.Wait()); code != 125 || strings.Count(stderr.String(), "interrupted by SIGTERM") != 1 {
		t.Errorf("exit code %d, want 125; it said: %s", code, stderr.String())
	}
}
