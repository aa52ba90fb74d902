package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/lazypages"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// contents are the files of a directory: what is in them, and which they are.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = fmt.Sprint(st.Ino)
		if e.Type().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			all[e.Name()] += " " + string(b)
		}
	}
	return all
}

// isRefused checks that whoever comes beside a daemon is refused, and changes nothing.
func (tr *tree) isRefused(t *testing.T, d *daemon, args ...string) {
	t.Helper()
	pid := strconv.Itoa(d.cmd.Process.Pid)
	fds := opened(t, pid)
	before := contents(t, tr.images)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, append([]string{"--no-default-config", "-D", tr.images, "-v4", "-o", "lazy-pages.log", "--pidfile", "lp.pid"}, args...)...)
	cmd.Env = append(os.Environ(), roleEnv+"=1")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), "another daemon serves there, process "+pid+":") {
		t.Errorf("%v: %v, %s", args, err, out)
	}
	after := contents(t, tr.images)
	for name, was := range before {
		if name == "lazy-pages.log" && strings.HasPrefix(after[name], was) {
			continue // the daemon's own words
		}
		if after[name] != was {
			t.Errorf("%v: %s is %q, and was %q", args, name, after[name], was)
		}
	}
	if len(after) != len(before) {
		t.Errorf("%v: files are %v, and were %v", args, after, before)
	}
	if now := opened(t, pid); now != fds {
		t.Errorf("%v: the daemon has open\n%s, and had\n%s", args, now, fds)
	}
}

// opened lists what a process has open that is memory or a userfaultfd.
func opened(t *testing.T, pid string) string {
	t.Helper()
	entries, err := os.ReadDir("/proc/" + pid + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	var list strings.Builder
	for _, e := range entries {
		if name, err := os.Readlink("/proc/" + pid + "/fd/" + e.Name()); err == nil && (strings.Contains(name, "memfd") || strings.Contains(name, "userfaultfd")) {
			fmt.Fprintln(&list, e.Name(), name)
		}
	}
	return list.String()
}

// Beside a daemon that lives there is no other one in its work directory, whatever it is at: whoever comes is refused,
// says who serves, and has changed nothing.
func TestSecondBesideOneThatLives(t *testing.T) {
	tr := plant(t, 2)
	pidfile := filepath.Join(tr.images, "lp.pid")
	if err := os.WriteFile(pidfile, []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := start(t, tr.images, "--background", "none")
	tr.isRefused(t, d, "-d")
	tr.connect(t)
	tr.send(t, 0)
	tr.awaitFirst(t)
	tr.isRefused(t, d, "-d", "--resume")
	tr.say(t, -zombie)
	tr.check(t, 0, 100, 3)
	tr.send(t, 1)
	tr.say(t, 0x52535446)
	tr.awaitState(t, `"connection":-1`)
	tr.isRefused(t, d)
	tr.check(t, 0, 0, 200)
	tr.check(t, 1, 0, 200)
	d.wait(t)
	if _, err := os.Stat(filepath.Join(tr.images, lazypages.LockName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the lock is still there: %v", err)
	}
}

// A resumer is one of several daemons that take over at once.
type resumer struct {
	cmd   *exec.Cmd
	err   bytes.Buffer
	ready *os.File
}

func (tr *tree) startResumer(t *testing.T) *resumer {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	s := &resumer{ready: r, cmd: exec.Command(exe, "--no-default-config", "-D", tr.images, "-v4", "-o", "lazy-pages.log", "--status-fd", "3", "--background", "none", "--resume")}
	s.cmd.Env = append(os.Environ(), roleEnv+"=1")
	s.cmd.ExtraFiles = []*os.File{w}
	s.cmd.Stderr = &s.err
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		r.Close()
	})
	return s
}

// isReady waits until the daemon serves, or has ended.
func (s *resumer) isReady() bool {
	n, _ := s.ready.Read(make([]byte, 1))
	return n == 1
}

// Of two that take over at once from a daemon that was killed this moment one serves, and the other is refused.
func TestTwoResumeAtOnce(t *testing.T) {
	tr := plant(t, 2)
	d := start(t, tr.images, "--background", "none")
	tr.connect(t)
	tr.send(t, 0)
	tr.say(t, -zombie)
	tr.awaitFirst(t)
	victim := d.cmd
	for round := range 6 {
		if round == 3 {
			tr.send(t, 1)
			tr.say(t, 0x52535446)
			tr.awaitState(t, `"connection":-1`)
		}
		if err := victim.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		two := [2]*resumer{tr.startResumer(t), tr.startResumer(t)}
		_ = victim.Wait()
		winner := 0
		ready := [2]bool{two[0].isReady(), two[1].isReady()}
		if ready[0] == ready[1] {
			t.Fatalf("round %d: ready are %v; %s; %s", round, ready, two[0].err.Bytes(), two[1].err.Bytes())
		}
		if ready[1] {
			winner = 1
		}
		loser := two[1-winner]
		_ = loser.cmd.Wait()
		if want := fmt.Sprintf("process %d:", two[winner].cmd.Process.Pid); loser.cmd.ProcessState.ExitCode() != 1 || !strings.Contains(loser.err.String(), want) {
			t.Errorf("round %d: the second: %v, %s; want that %s serves", round, loser.cmd.ProcessState, loser.err.Bytes(), want)
		}
		tr.check(t, 0, round*10, 5)
		victim = two[winner].cmd
	}
	_ = victim.Process.Kill()
	d = start(t, tr.images, "--resume") // with all that is missing, as nobody knows what those before have brought
	_ = victim.Wait()
	tr.check(t, 0, 0, 200)
	tr.check(t, 1, 0, 200)
	d.wait(t)
}

// One that ends while another waits for the directory takes its lock along, and the other has one of its own.
func TestLockIsPassedOn(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, lazypages.LockName)
	first, err := lazypages.LockDir(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan *lazypages.Lock, 1)
	go func() {
		second, err := lazypages.LockDir(t.Context(), dir)
		if err != nil {
			t.Error(err)
		}
		got <- second
	}()
	select {
	case <-got:
		t.Fatal("two have locked it")
	case <-time.After(20 * time.Millisecond):
	}
	first.Release()
	second := <-got
	if second == nil {
		return
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != fmt.Sprintln(os.Getpid()) {
		t.Errorf("the lock says %q, %v", b, err)
	}
	second.Release()
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the lock is still there: %v", err)
	}
}

// A daemon that serves nothing yet, in whose directory another one was killed, is not resumed from.
func TestResumeBesideAFirstOne(t *testing.T) {
	tr := plant(t, 1)
	d := start(t, tr.images)
	var out bytes.Buffer
	code := run([]string{"x", "--no-default-config", "-D", tr.images, "--resume"}, io.Discard, &out)
	if code != 1 || !strings.Contains(out.String(), "--resume takes over once it has ended") {
		t.Errorf("exit status %d: %s", code, out.String())
	}
	tr.connect(t)
	tr.send(t, 0)
	tr.say(t, -zombie)
	tr.say(t, 0x52535446)
	tr.check(t, 0, 0, 200)
	d.wait(t)
}

// Where tasks wait for --resume no other restore begins, which would leave them waiting for ever, until they have ended.
func TestFirstWhereTasksWait(t *testing.T) {
	for name, ends := range map[string]bool{"they are resumed": false, "they have ended": true} {
		t.Run(name, func(t *testing.T) {
			tr := plant(t, 1)
			d := start(t, tr.images, "--background", "none")
			tr.connect(t)
			tr.send(t, 0)
			tr.awaitFirst(t)
			d.kill(t)
			before := contents(t, tr.images)
			var out bytes.Buffer
			code := run([]string{"x", "--no-default-config", "-D", tr.images}, io.Discard, &out)
			if code != 1 || !strings.Contains(out.String(), "--resume serves them") {
				t.Errorf("exit status %d: %s", code, out.String())
			}
			delete(before, lazypages.LockName) // of the daemon that was killed
			if after := contents(t, tr.images); !maps.Equal(before, after) {
				t.Errorf("files are %v, and were %v", after, before)
			}
			if ends {
				tr.tasks[0].Kill()
				tr.tasks[0].WaitExit(t)
				start(t, tr.images).kill(t)
				return
			}
			d = start(t, tr.images, "--resume")
			tr.say(t, -zombie)
			tr.say(t, 0x52535446)
			tr.check(t, 0, 0, 200)
			d.wait(t)
		})
	}
}

// So it is where the daemon before ends just now, and the other one has waited for the directory.
func TestFirstWhereADaemonEnds(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		tr := plant(t, 1)
		d := start(t, tr.images, "--background", "none")
		tr.connect(t)
		tr.send(t, 0)
		tr.awaitFirst(t)
		second := exec.Command(exe, "--no-default-config", "-D", tr.images)
		second.Env = append(os.Environ(), roleEnv+"=1")
		var out bytes.Buffer
		second.Stderr = &out
		watch, err := unix.InotifyInit1(unix.IN_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(watch)
		if _, err := unix.InotifyAddWatch(watch, filepath.Join(tr.images, lazypages.LockName), unix.IN_OPEN); err != nil {
			t.Fatal(err)
		}
		if err := second.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(10*time.Second, func() { _ = second.Process.Kill() })
		if !uffdtest.Readable(watch, uffdtest.Timeout) {
			t.Error("the second does not come to the lock")
		}
		if err := d.cmd.Process.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		_ = second.Wait()
		timer.Stop()
		if !strings.Contains(out.String(), "--resume serves them") {
			t.Errorf("%v: %s", second.ProcessState, out.String())
		}
		_ = d.cmd.Wait()
	}
}
