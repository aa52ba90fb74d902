package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/cmd/internal/verb"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// A pseudoterminal is what a user sits before.
type pseudoterminal struct {
	t      *testing.T
	master *os.File
	slave  *os.File

	mu   sync.Mutex
	text strings.Builder // what was written on it
}

func newTerminal(t *testing.T) *pseudoterminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd := int(master.Fd()) // it is waited for by a thread from now on
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile("/dev/pts/"+itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := &pseudoterminal{t: t, master: master, slave: slave}
	read := make(chan struct{})
	go func() {
		defer close(read)
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			p.mu.Lock()
			p.text.Write(buf[:n])
			p.mu.Unlock()
			if err != nil { // EIO: nobody has it open any more
				return
			}
		}
	}()
	t.Cleanup(func() {
		slave.Close()
		select {
		case <-read:
			master.Close()
		case <-time.After(uffdtest.Timeout):
			t.Error("somebody still has the terminal open")
		}
	})
	return p
}

// program is one that leads a session whose terminal p is, as a login shell does.
func (p *pseudoterminal) program(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	p.leads(cmd)
	return cmd
}

func (p *pseudoterminal) leads(cmd *exec.Cmd) {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.slave, p.slave, p.slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
}

func (p *pseudoterminal) types(keys string) {
	p.t.Helper()
	if _, err := p.master.WriteString(keys); err != nil {
		p.t.Fatal(err)
	}
}

func (p *pseudoterminal) shows() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.String()
}

// await waits for what a process does.
func (p *pseudoterminal) await(what string, done func() bool) {
	p.t.Helper()
	for limit := time.Now().Add(uffdtest.Timeout); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			p.t.Fatalf("there is no %s; the terminal shows %q", what, p.shows())
		}
	}
}

// awaitForeground waits until a process runs and has the terminal, and its group is the foreground one.
func (p *pseudoterminal) awaitForeground(pid int) {
	p.t.Helper()
	p.await("process "+itoa(pid)+" in the foreground", func() bool {
		s, err := proc.ReadStat(pid)
		return err == nil && s.State != 'T' && s.State != 't' && s.TTY != 0 && s.PGRP == pid && s.ForegroundPGRP == pid
	})
}

func (p *pseudoterminal) modes() unix.Termios {
	p.t.Helper()
	modes, err := unix.IoctlGetTermios(int(p.slave.Fd()), unix.TCGETS)
	if err != nil {
		p.t.Fatal(err)
	}
	return *modes
}

// restored starts a restore that has terminal p.
func (p *pseudoterminal) restored(args ...string) *exec.Cmd {
	p.t.Helper()
	cmd := lazyrestoreCommand(p.t, append([]string{"restore"}, args...)...)
	p.leads(cmd)
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) } // which ends the process, too
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	return cmd
}

// endsWith waits for the end of a restore.
func endsWith(t *testing.T, cmd *exec.Cmd, code int) {
	t.Helper()
	late := time.AfterFunc(uffdtest.Timeout, func() { _ = cmd.Process.Signal(unix.SIGTERM) })
	defer late.Stop()
	cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != code {
		t.Errorf("exit code %d, want %d", got, code)
	}
}

// reading is how the call begins of a shell that reads, from whatever it has put in the place
// of its input; see within.
const reading = "0 0x0 "

func newFIFO(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// What had a terminal has that of a restore in the foreground.
func TestTerminalIsHandedOver(t *testing.T) {
	img, pid := imageOf(t, newTerminal(t).program("sleep", "1000"), sleeping)
	p := newTerminal(t)
	cmd := p.restored(img)
	p.awaitForeground(pid)
	p.types("\x03")
	endsWith(t, cmd, 128+int(unix.SIGINT))
	if text := p.shows(); strings.Contains(text, "warning") {
		t.Errorf("the terminal shows %q", text)
	}
}

// A program that looks at its keys one by one finds the terminal so, and where it is killed
// the terminal is what it was before.
func TestTerminalModes(t *testing.T) {
	old := newTerminal(t)
	raw := old.modes()
	raw.Lflag &^= unix.ECHO | unix.ICANON
	raw.Cc[unix.VMIN] = 7
	if err := unix.IoctlSetTermios(int(old.slave.Fd()), unix.TCSETS, &raw); err != nil {
		t.Fatal(err)
	}
	img, pid := imageOf(t, old.program("sleep", "1000"), sleeping)
	p := newTerminal(t)
	was := p.modes()
	cmd := p.restored(img)
	p.awaitForeground(pid)
	if now := p.modes(); now.Lflag != raw.Lflag || now.Cc != raw.Cc {
		t.Errorf("the terminal's modes are %+v, want %+v", now, raw)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	endsWith(t, cmd, 128+int(unix.SIGKILL))
	if now := p.modes(); now != was {
		t.Errorf("the terminal's modes are %+v, want %+v", now, was)
	}
}

// Another terminal shows nothing yet, and may have another size.
func TestTerminalIsANewWindow(t *testing.T) {
	img, pid := imageOf(t, newTerminal(t).program("env", "--block-signal=WINCH", "sleep", "1000"), sleeping)
	p := newTerminal(t)
	cmd := p.restored(img)
	p.awaitForeground(pid)
	p.await("word of another window", func() bool {
		s, err := proc.ReadStatus(pid)
		return err == nil && s.ShdPnd&(1<<(unix.SIGWINCH-1)) != 0
	})
	p.types("\x03")
	endsWith(t, cmd, 128+int(unix.SIGINT))
}

// To a shell with job control the restore is a job: what its user stops and has go on is the process.
func TestJobControlOfRestored(t *testing.T) {
	fifo := newFIFO(t)
	// It looks for a key when it is told to.
	img, pid := imageOf(t, newTerminal(t).program("sh", "-c", "exec 5<>"+fifo+"; read go <&5; read line; echo got $line; exec sleep 1000"), reading)
	p := newTerminal(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The command goes by its name.
	link := filepath.Join(t.TempDir(), "lazyrestore")
	if err := os.Symlink(self, link); err != nil {
		t.Fatal(err)
	}
	shell := p.program("bash", "--norc", "--noprofile", "--noediting", "-i")
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	defer shell.Wait()
	defer shell.Process.Kill()
	stopped := func(pid int) bool {
		s, err := proc.ReadStat(pid)
		return err == nil && s.State == 'T'
	}
	shellHas := func() bool {
		s, err := proc.ReadStat(shell.Process.Pid)
		return err == nil && s.ForegroundPGRP == shell.Process.Pid
	}
	p.types(link + " restore " + img + "\n")
	p.awaitForeground(pid)
	for range 2 {
		p.types("\x1a")
		p.await("shell in the foreground", func() bool { return shellHas() && stopped(pid) })
		p.types("fg\n")
		p.awaitForeground(pid)
	}
	p.types("\x1a")
	p.await("shell in the foreground", func() bool { return shellHas() && stopped(pid) })
	p.types("bg\n")
	p.await("process in the background", func() bool { return !stopped(pid) })
	p.types("fg\n")
	p.await("command in the foreground", func() bool { return !shellHas() })
	if err := os.WriteFile(fifo, []byte("go\n"), 0); err != nil {
		t.Fatal(err)
	}
	p.awaitForeground(pid) // it asks for a key
	p.types("a line\n")
	p.await("line", func() bool { return strings.Contains(p.shows(), "got a line") })
	asleep(t, pid) // a shell may miss a key that comes while it starts something
	p.types("\x03")
	p.types("echo it ended with $(($?))\n")
	p.await("end", func() bool { return strings.Contains(p.shows(), "it ended with "+itoa(128+int(unix.SIGINT))) })
	p.types("exit\n")
	if err := shell.Wait(); err != nil {
		t.Error(err)
	}
}

// Where there is no terminal a process is told to have lost its own, and one that has it open
// is not restored unless the user has it so.
func TestNoTerminalToHandOver(t *testing.T) {
	img, pid := imageOf(t, newTerminal(t).program("sh", "-c", "exec 3<>/dev/tty; exec sleep 1000"), sleeping)
	cmd := lazyrestoreCommand(t, "restore", "-d", img)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	endsWithRefusal := func() {
		t.Helper()
		_ = cmd.Run()
		if code := cmd.ProcessState.ExitCode(); code != verb.Refused || !strings.Contains(stderr.String(), "/dev/tty") {
			t.Errorf("exit code %d: %s", code, &stderr)
		}
	}
	endsWithRefusal()
	cmd = lazyrestoreCommand(t, "restore", "-d", "--stdio=saved", img)
	stderr.Reset()
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, &stderr)
	}
	defer end(t, pid)
	if !strings.Contains(stderr.String(), "controlling terminal") {
		t.Errorf("no word of the terminal: %q", &stderr)
	}
	if to, err := os.Readlink("/proc/" + itoa(pid) + "/fd/3"); err != nil || to != os.DevNull {
		t.Errorf("descriptor 3 is %q: %v", to, err)
	}
}

// A pager that shows what the process writes keeps the terminal.
func TestTerminalOfAPager(t *testing.T) {
	img, _ := imageOf(t, newTerminal(t).program("sleep", "1000"), sleeping)
	p := newTerminal(t)
	cmd := lazyrestoreCommand(t, "restore", img)
	p.leads(cmd)
	cmd.Stdout = new(strings.Builder)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.await("word of the terminal", func() bool { return strings.Contains(p.shows(), "controlling terminal") })
	p.types("\x03")
	endsWith(t, cmd, 128+int(unix.SIGINT))
}

// What has opened its terminal has it open again.
func TestOpenTerminalSurvives(t *testing.T) {
	img, pid := imageOf(t, newTerminal(t).program("sh", "-c", "exec 3<>/dev/tty 4<$(tty); exec sleep 1000"), sleeping)
	p := newTerminal(t)
	cmd := p.restored(img)
	p.awaitForeground(pid)
	for fd := 3; fd < 5; fd++ {
		if to, err := os.Readlink("/proc/" + itoa(pid) + "/fd/" + itoa(fd)); err != nil || to != "/dev/tty" {
			t.Errorf("descriptor %d is %q: %v", fd, to, err)
		}
	}
	p.types("\x03")
	endsWith(t, cmd, 128+int(unix.SIGINT))
}
