package main

import (
	"bytes"
	"errors"
	"io"
	"net"
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

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// An executable that is linked as the Makefile has it has its keeper before Go
// begins, and has it for restores alone. The keeper shares what is opened later, has next
// to no memory, and ends when the command is killed.
func TestEnteredKeeper(t *testing.T) {
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	entry := regexp.MustCompile(`-E \S+\.enter\b`).Find(makefile)
	if entry == nil {
		t.Fatal("the Makefile does not say where the executable is entered")
	}
	dir := t.TempDir()
	bin, sock := filepath.Join(dir, "lazyrestore"), filepath.Join(dir, "sock")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", string(entry), "-o", bin, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	// A page server that does not answer: the command waits for it.
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	waiting := func(args ...string) (*exec.Cmd, net.Conn) {
		cmd := exec.CommandContext(t.Context(), bin, append(args, "unix://"+sock+"/image")...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		return cmd, conn
	}
	other, conn := waiting("inspect")
	if list := children(t, other.Process.Pid); len(list) > 0 {
		t.Errorf("lazyrestore inspect has children: %v", list)
	}
	conn.Close()
	_ = other.Wait()

	cmd, conn := waiting("restore")
	defer conn.Close()
	list := children(t, cmd.Process.Pid)
	if len(list) != 1 {
		t.Fatalf("the command has children %v, want its keeper", list)
	}
	awaitKeeper(t, list[0])
	var ours, theirs []byte // which are those of one moment once the command does nothing but wait
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		ours, theirs = descriptors(t, strconv.Itoa(cmd.Process.Pid)), descriptors(t, list[0])
		if bytes.Contains(ours, []byte("socket:")) && bytes.Equal(ours, theirs) {
			break
		}
	}
	if !bytes.Contains(ours, []byte("socket:")) || !bytes.Equal(ours, theirs) {
		t.Errorf("the command has open:\n%s\nits keeper:\n%s", ours, theirs)
	}
	keeper, err := strconv.Atoi(list[0])
	if err != nil {
		t.Fatal(err)
	}
	// What it sends at its end tells an orphan from one whose pager lives.
	if stat, err := proc.ReadStat(keeper); err != nil || stat.ExitSignal != 0 {
		t.Errorf("the keeper is to send signal %d at its end (%v)", stat.ExitSignal, err)
	}
	if err := errors.Join(syscall.Kill(keeper, syscall.SIGSTOP), cmd.Process.Kill()); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if stat, err := proc.ReadStat(keeper); err != nil || stat.ExitSignal != int(syscall.SIGCHLD) {
		t.Errorf("the keeper that is left is to send signal %d at its end (%v)", stat.ExitSignal, err)
	}
	if err := syscall.Kill(keeper, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	// The keeper has the connection too, for as long as it lives.
	if _, err := io.Copy(io.Discard, conn); err != nil {
		t.Errorf("the keeper has not ended with the command: %v", err)
	}
	pid, img := bareImage(t)
	withoutMemory(t, bin, pid, img)
	keepsSlack(t, bin, pid, img)
}

// withoutMemory restores a process that has no memory to be served: its restore keeps
// no keeper.
func withoutMemory(t *testing.T, bin string, pid int, img string) {
	t.Helper()
	restore := restoreBare(t, bin, img)
	for _, child := range children(t, restore.Process.Pid) {
		if child != strconv.Itoa(pid) {
			t.Errorf("the restore has child %s beside process %d", child, pid)
		}
	}
	end(t, pid)
	_ = restore.Wait()
}

// bareImage is an image of such a process, which has ended.
func bareImage(t *testing.T) (pid int, img string) {
	t.Helper()
	uffdtest.Need(t, "uffd", "ptrace", "root", "cmd:gcc")
	bare := filepath.Join(t.TempDir(), "bare")
	gcc := exec.Command("gcc", "-static", "-nostdlib", "-x", "assembler", "-o", bare, "-")
	// madvise(stack, MADV_DONTNEED), a line, and pause for ever
	gcc.Stdin = strings.NewReader(`.globl _start
_start:	mov %rsp, %rdi; and $-4096, %rdi; mov $0x8000, %esi; mov $4, %edx; mov $28, %eax; syscall
	mov $1, %edi; lea line(%rip), %rsi; mov $5, %edx; mov $1, %eax; syscall
1:	mov $34, %eax; syscall
	jmp 1b
line:	.ascii "here\n"
`)
	if out, err := gcc.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := unix.CloseRange(3, 1<<20, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bare)
	cmd.Env, cmd.SysProcAttr = []string{}, &syscall.SysProcAttr{Setsid: true}
	line, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	if _, err := io.ReadFull(line, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	pid, img = cmd.Process.Pid, filepath.Join(t.TempDir(), "img")
	out, err := lazyrestoreCommand(t, "checkpoint", "--json", "-D", img, strconv.Itoa(pid)).Output()
	if err != nil || !bytes.Contains(out, []byte(`"lazy_bytes": 0,`)) {
		t.Fatalf("checkpoint: %v\n%s", err, out)
	}
	_ = cmd.Wait()
	return pid, img
}

// restoreBare starts a restore in the foreground, and returns when the process runs.
func restoreBare(t *testing.T, bin, img string) *exec.Cmd {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	restore := exec.CommandContext(t.Context(), bin, "restore", "--json-fd", "3", img)
	restore.ExtraFiles, restore.Stderr = []*os.File{write}, testWriter{t}
	if err := restore.Start(); err != nil {
		t.Fatal(err)
	}
	write.Close()
	if _, err := io.Copy(io.Discard, read); err != nil {
		t.Error(err)
	}
	return restore
}

func children(t *testing.T, pid int) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "task", strconv.Itoa(pid), "children"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(b))
}

// mapped are mappings, but that of the kernel which all processes have.
var mapped = regexp.MustCompile(`(?m)^[0-7][0-9a-f]+-.*$`)

// awaitKeeper waits until a process has its keeper's name and no memory but two
// pieces of the executable.
func awaitKeeper(t *testing.T, pid string) {
	t.Helper()
	var comm, maps []byte
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		var err, err2 error
		comm, err = os.ReadFile(filepath.Join("/proc", pid, "comm"))
		maps, err2 = os.ReadFile(filepath.Join("/proc", pid, "maps"))
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		if string(comm) == "lazyrest-keeper\n" && len(mapped.FindAll(maps, -1)) == 2 {
			return
		}
	}
	t.Fatalf("process %s is %q and has mapped:\n%s", pid, comm, maps)
}

// descriptors lists what a process has open.
func descriptors(t *testing.T, pid string) []byte {
	t.Helper()
	dir := filepath.Join("/proc", pid, "fd")
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	for _, e := range entries {
		link, _ := os.Readlink(filepath.Join(dir, e.Name()))
		out = append(out, e.Name()+" "+link+"\n"...)
	}
	return out
}
