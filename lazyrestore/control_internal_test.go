package lazyrestore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// The sockets of killed pagers go, those of others stay.
func TestSweepControls(t *testing.T) {
	dir := t.TempDir()
	old := time.Now().Add(-time.Hour)
	make1 := func(name string, listens bool) string {
		path := filepath.Join(dir, name)
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
			t.Fatal(err)
		}
		if listens {
			if err := unix.Listen(fd, 1); err != nil {
				t.Fatal(err)
			}
		}
		return path
	}
	dead, alive, fresh, own := make1("1.sock", false), make1("2.sock", true), make1("3.sock", false), make1("4.sock", false)
	file := filepath.Join(dir, "5.sock")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dead, alive, own, file} {
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	sweepControls(dir, own)
	for path, stays := range map[string]bool{dead: false, alive: true, fresh: true, own: true, file: true} {
		if _, err := os.Lstat(path); (err == nil) != stays {
			t.Errorf("%s: %v, want it to stay: %v", filepath.Base(path), err, stays)
		}
	}
}

// A socket that is made where another was may get the number of its inode. It stays.
func TestRemoveSame(t *testing.T) {
	path := filepath.Join(t.TempDir(), "1.sock")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	was, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	later := was.ModTime().Add(time.Minute)
	if err := os.Chtimes(path, later, later); err != nil {
		t.Fatal(err)
	}
	if removeSame(path, was); !isFile(path) {
		t.Error("one that was made later is removed")
	}
	if err := os.Chtimes(path, was.ModTime(), was.ModTime()); err != nil {
		t.Fatal(err)
	}
	if removeSame(path, was); isFile(path) {
		t.Error("the same one stays")
	}
}

func isFile(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// A pager that leaves does not take the socket of the next one that has the id.
func TestControlOfTheNextStays(t *testing.T) {
	pid := os.Getpid()
	answer := func(string) controlReply { return controlReply{PID: pid} }
	first, err := listenControl(pid, answer)
	if err != nil {
		t.Fatal(err)
	}
	next, err := listenControl(pid, answer)
	if err != nil {
		t.Fatal(err)
	}
	first.close()
	if _, err := askPager(t.Context(), pid, askStatus); err != nil {
		t.Errorf("the next one does not answer: %v", err)
	}
	next.close()
	if _, err := askPager(t.Context(), pid, askStatus); !errors.Is(err, errNoPager) {
		t.Errorf("after its end: %v", err)
	}
}

// Who asks a pager that leaves before it answers learns that nobody is there.
func TestAskPagerThatLeaves(t *testing.T) {
	pid := os.Getpid()
	c, err := listenControl(pid, func(string) controlReply { return controlReply{PID: pid} })
	if err != nil {
		t.Fatal(err)
	}
	unix.Write(c.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	<-c.done // it accepts nobody any more
	asked := make(chan error)
	go func() {
		_, err := askPager(t.Context(), pid, askStatus)
		asked <- err
	}()
	if !uffdtest.Readable(c.fd, uffdtest.Timeout) {
		t.Fatal("nobody asks")
	}
	c.close()
	if err := <-asked; !errors.Is(err, errNoPager) {
		t.Errorf("told %v", err)
	}
}

// A pager that runs is waited for longer than one that is stopped, and one that is killed is known at once.
func TestAwaitAnswer(t *testing.T) {
	begin := func(t *testing.T) (l listener, asker, answerer int) {
		t.Helper()
		cmd := exec.Command("sleep", "100")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
		pidfd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		s, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		l = listener{pid: cmd.Process.Pid, fd: pidfd}
		t.Cleanup(func() { l.close(); unix.Close(s[0]); unix.Close(s[1]) })
		return l, s[0], s[1]
	}
	const short, long = time.Millisecond, time.Minute
	t.Run("it runs", func(t *testing.T) {
		l, asker, answerer := begin(t)
		time.AfterFunc(300*time.Millisecond, func() { unix.Write(answerer, []byte("{}")) })
		if err := l.awaitAnswer(t.Context(), asker, short, long); err != nil {
			t.Error(err)
		}
	})
	t.Run("too long", func(t *testing.T) {
		l, asker, _ := begin(t)
		if err := l.awaitAnswer(t.Context(), asker, short, short); err == nil || strings.Contains(err.Error(), "stopped") {
			t.Error(err)
		}
	})
	t.Run("it is stopped", func(t *testing.T) {
		l, asker, _ := begin(t)
		if err := unix.Kill(l.pid, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		if err := l.awaitAnswer(t.Context(), asker, short, long); err == nil || !strings.Contains(err.Error(), "stopped") {
			t.Error(err)
		}
	})
	t.Run("it is killed", func(t *testing.T) {
		l, asker, _ := begin(t)
		time.AfterFunc(10*time.Millisecond, func() { unix.Kill(l.pid, unix.SIGKILL) })
		if err := l.awaitAnswer(t.Context(), asker, long, long); !errors.Is(err, errPagerKilled) {
			t.Error(err)
		}
	})
	t.Run("it is killed in the midst", func(t *testing.T) {
		l, asker, answerer := begin(t)
		unix.Write(answerer, []byte(`{"pid":`))
		time.AfterFunc(10*time.Millisecond, func() { unix.Kill(l.pid, unix.SIGKILL) })
		fd, err := unix.Dup(asker)
		if err != nil {
			t.Fatal(err)
		}
		f := socketFile(fd)
		defer f.Close()
		answer := answerReader{f, func() error { return l.awaitAnswer(t.Context(), asker, long, long) }}
		if err := json.NewDecoder(answer).Decode(new(controlReply)); !errors.Is(err, errPagerKilled) {
			t.Error(err)
		}
	})
	t.Run("called off", func(t *testing.T) {
		l, asker, _ := begin(t)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(10*time.Millisecond, cancel)
		if err := l.awaitAnswer(ctx, asker, long, long); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// A pager was killed, its keeper holds the socket, and its id is another process's by now.
func TestListenerWhoseIDIsTakenAgain(t *testing.T) {
	uffdtest.Need(t, "ptrace", "root")
	socket := func() int {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	held := socket()
	addr := &unix.SockaddrUnix{Name: filepath.Join(t.TempDir(), "s")}
	if err := unix.Bind(held, addr); err != nil {
		t.Fatal(err)
	}
	pager, pidfd, err := proc.CloneExec([]proc.Call{
		{NR: unix.SYS_LISTEN, Args: [6]uint64{uint64(held), 8}},
		{NR: unix.SYS_EXIT_GROUP},
	}, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	if err := unix.Waitid(unix.P_PIDFD, pidfd, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	client := socket()
	if err := unix.Connect(client, addr); err != nil {
		t.Fatal(err)
	}
	wantEnded := func(when string) {
		t.Helper()
		l := listenerOf(client)
		defer l.close()
		if l.pid != pager || !l.ended() {
			t.Errorf("%s: process %d listens, ended: %v; want %d, which has", when, l.pid, l.ended(), pager)
		}
	}
	wantEnded("not waited for")
	if _, err := unix.Wait4(pager, nil, 0, nil); err != nil {
		t.Fatal(err)
	}
	wantEnded("waited for")

	sleep, err := os.Open("/bin/sleep")
	if err != nil {
		t.Fatal(err)
	}
	defer sleep.Close()
	tr, err := proc.NewTracer()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(tr.KillAll(), tr.Close()); err != nil {
			t.Error(err)
		}
	}()
	if err := tr.Start(proc.StartOptions{PID: pager, Exec: int(sleep.Fd()), Args: []string{"sleep", "100"}}); err != nil {
		t.Fatal(err)
	}
	known, err := unix.GetsockoptInt(client, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if errors.Is(err, unix.ENOPROTOOPT) {
		t.Log("before Linux 6.5 this cannot be told")
		return
	} else if err == nil {
		unix.Close(known)
	}
	wantEnded("its id is taken again")
}

// Of a process that is gone the error says no more than that; of one that has lost
// a thread meanwhile it says which.
func TestExplainFreeze(t *testing.T) {
	err := fmt.Errorf("seize task 4711: %w", proc.ErrNoProcess)
	if got := explainFreeze(1<<22+1, err); got.Error() != proc.ErrNoProcess.Error() {
		t.Errorf("a process that is gone: %v", got)
	}
	if got := explainFreeze(os.Getpid(), err); got.Error() != err.Error() {
		t.Errorf("a process that is there: %v, want %v", got, err)
	}
}
