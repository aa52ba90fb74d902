package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/lazypages"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// stop has the daemon not run until it is killed, or goes on.
func (d *daemon) stop(t *testing.T) {
	t.Helper()
	if err := d.cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, d.cmd.Process.Pid, &info, unix.WSTOPPED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
}

// sayAll is all that criu restore says of a tree of two, and it leaves.
func (tr *tree) sayAll(t *testing.T) {
	t.Helper()
	tr.send(t, 0)
	tr.say(t, -zombie)
	tr.send(t, 1)
	tr.say(t, 0x52535446)
	if err := unix.Shutdown(tr.conn, unix.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
}

// awaitAccepted waits until the daemon has taken the connection, and its keeper knows.
func (tr *tree) awaitAccepted(t *testing.T, d *daemon) {
	t.Helper()
	for end := time.Now().Add(uffdtest.Timeout); ; time.Sleep(time.Millisecond) {
		text, err := os.ReadFile(d.log)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(text, []byte("criu restore has connected")) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the daemon does not say that it has a connection: %s", text)
		}
	}
}

// A daemon that does not get to run takes nothing of what criu restore says, whose tasks run all the same. Killed or
// ended then it leaves them waiting for a successor, and no other restore begins in their place.
func TestNothingTaken(t *testing.T) {
	for _, c := range []struct {
		name     string
		accepted bool
		end      unix.Signal
	}{
		{"killed before it takes the connection", false, unix.SIGKILL},
		{"killed before it takes a task", true, unix.SIGKILL},
		{"ended before it takes the connection", false, unix.SIGTERM},
		{"ended before it takes a task", true, unix.SIGTERM},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr := plant(t, 2)
			d := start(t, tr.images, "--background", "none")
			if c.accepted {
				tr.connect(t)
				tr.awaitAccepted(t, d)
			}
			d.stop(t)
			if !c.accepted {
				tr.connect(t)
			}
			tr.sayAll(t)
			touch := tr.tasks[1].Load(tr.tasks[1].Addr(7))
			for _, s := range []unix.Signal{c.end, unix.SIGCONT} {
				if err := d.cmd.Process.Signal(s); err != nil {
					t.Fatal(err)
				}
			}
			_ = d.cmd.Wait()
			// The keeper looks twice meanwhile. Asked to end, a daemon that goes on may serve for as long as it has not
			// learned of that.
			if touch.Ready(1500*time.Millisecond) && c.end == unix.SIGKILL {
				v, err := touch.Result()
				t.Fatalf("a missing page was read (%d, %v) while nobody served it", v, err)
			}
			var out bytes.Buffer
			code := run([]string{"x", "--no-default-config", "-D", tr.images}, io.Discard, &out)
			if code != 1 || !strings.Contains(out.String(), "--resume serves them") {
				t.Errorf("another daemon: exit status %d: %s", code, out.String())
			}
			d = start(t, tr.images, "--resume")
			if got, want := touch.Wait(t), uint64(tr.want[1][7<<12]); got != want {
				t.Errorf("the page begins with %d, want %d", got, want)
			}
			tr.check(t, 0, 0, 200)
			tr.check(t, 1, 0, 200)
			d.wait(t)
		})
	}
}

// Where nobody has said anything there is nothing to go on from, and nothing in the way of another daemon.
func TestNobodyHasSpoken(t *testing.T) {
	for name, connected := range map[string]bool{"connected": true, "not connected": false} {
		t.Run(name, func(t *testing.T) {
			tr := plant(t, 1)
			d := start(t, tr.images)
			if connected {
				tr.connect(t)
				tr.awaitAccepted(t, d)
			}
			d.kill(t)
			if connected && !uffdtest.Readable(tr.conn, uffdtest.Timeout) {
				t.Error("criu restore does not see that the daemon has gone")
			}
			var out bytes.Buffer
			code := run([]string{"x", "--no-default-config", "-D", tr.images, "--resume"}, io.Discard, &out)
			if code != 1 || !strings.Contains(out.String(), "no pager to take over from") {
				t.Errorf("--resume: exit status %d: %s", code, out.String())
			}
			start(t, tr.images).kill(t)
		})
	}
}

// Tasks that have ended before anybody took them are in nobody's way once a daemon has gone on.
func TestNothingTakenOfWhoHasEnded(t *testing.T) {
	tr := plant(t, 2)
	d := start(t, tr.images)
	d.stop(t)
	tr.connect(t)
	tr.sayAll(t)
	d.kill(t)
	for _, c := range tr.tasks {
		c.Kill()
		c.WaitExit(t)
	}
	start(t, tr.images, "--resume").wait(t)
	if _, err := os.Stat(filepath.Join(tr.images, lazypages.StateName)); err == nil {
		t.Error("the state is still there")
	}
	start(t, tr.images).kill(t)
}

// The last word of criu restore alone, which brings no task, keeps no keeper whose tasks have ended.
func TestOnlyTheLastWordIsUntaken(t *testing.T) {
	tr := plant(t, 1)
	d := start(t, tr.images, "--background", "none")
	tr.connect(t)
	tr.send(t, 0)
	tr.awaitFirst(t)
	state, err := os.ReadFile(filepath.Join(tr.images, lazypages.StateName))
	m := regexp.MustCompile(`"keepers":\[{"pid":(\d+),`).FindSubmatch(state)
	if err != nil || m == nil {
		t.Fatalf("the state: %s, %v", state, err)
	}
	pid, _ := strconv.Atoi(string(m[1]))
	keeper, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(keeper)
	d.stop(t)
	tr.say(t, 0x52535446)
	if err := unix.Shutdown(tr.conn, unix.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
	d.kill(t)
	if uffdtest.Readable(keeper, 1500*time.Millisecond) { // in which it looks twice
		t.Error("the keeper has ended before its task")
	}
	tr.tasks[0].Kill()
	tr.tasks[0].WaitExit(t)
	if !uffdtest.Readable(keeper, uffdtest.Timeout) {
		t.Fatal("the keeper stays where its task has ended")
	}
	start(t, tr.images).kill(t)
}
