package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/lazypages"
)

// complete says the rest of the tree of two of which the first task has come, and checks
// that all is well.
func (tr *tree) complete(t *testing.T, d *daemon) {
	t.Helper()
	tr.say(t, -zombie)
	tr.send(t, 1)
	tr.say(t, 0x52535446)
	tr.check(t, 0, 0, 200)
	tr.check(t, 1, 0, 200)
	d.wait(t)
}

// startDying starts a daemon that takes over, says that it is ready, and is killed when it
// says message in its log.
func (tr *tree) startDying(t *testing.T, message string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, tr.images)
	cmd.Env = append(os.Environ(), dieEnv+"="+message)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("the daemon says %q, %v", line, err)
	}
	return cmd
}

// The keeper of a daemon that was killed before it had written down its first task is
// ended once another daemon has all that it held.
func TestKeeperOfNoTaskIsEnded(t *testing.T) {
	tr := plant(t, 2)
	cmd := tr.startDying(t, "task")
	tr.connect(t)
	tr.send(t, 0)
	_ = cmd.Wait()
	if cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
		t.Fatalf("the daemon: %v", cmd.ProcessState)
	}
	b, err := os.ReadFile(filepath.Join(tr.images, lazypages.StateName))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`"keepers":\[{"pid":(\d+),.*"tasks":null`).FindStringSubmatch(string(b))
	if m == nil {
		t.Fatalf("state: %s", b)
	}
	tr.complete(t, start(t, tr.images, "--resume"))
	if stat, err := os.ReadFile("/proc/" + m[1] + "/stat"); err == nil && !strings.Contains(string(stat), ") Z ") {
		t.Errorf("the keeper of the daemon that was killed lives: %s", stat)
	}
}

// A daemon that cannot write down that it takes over leaves all to the next one, and
// holds nothing.
func TestFailedTakeOverHoldsNothing(t *testing.T) {
	tr := plant(t, 2)
	d := start(t, tr.images, "--background", "none")
	tr.connect(t)
	tr.send(t, 0)
	tr.awaitFirst(t)
	d.kill(t)
	inTheWay := filepath.Join(tr.images, lazypages.StateName+".new")
	if err := os.Mkdir(inTheWay, 0o700); err != nil {
		t.Fatal(err)
	}
	var open [2]string // the first call opens what the runtime keeps
	for i := range open {
		if _, err := lazypages.Resume(context.Background(), lazypages.Options{Images: tr.images}); err == nil {
			t.Fatal("it took over")
		}
		open[i] = descriptors(t)
	}
	if open[0] != open[1] {
		t.Errorf("open before:\n%s\nafterwards:\n%s", open[0], open[1])
	}
	if err := os.Remove(inTheWay); err != nil {
		t.Fatal(err)
	}
	tr.complete(t, start(t, tr.images, "--resume"))
}

// Who takes over from a daemon that was killed between the end of its work and its own has
// nothing to do, and says so.
func TestResumeWhatIsDone(t *testing.T) {
	for name, ends := range map[string]bool{"all is there": false, "the task has ended": true} {
		t.Run(name, func(t *testing.T) {
			tr := plant(t, 1)
			d := start(t, tr.images, "--background", "none")
			tr.connect(t)
			tr.send(t, 0)
			tr.say(t, -zombie)
			tr.say(t, 0x52535446)
			tr.awaitState(t, `"connection":-1`)
			d.kill(t)
			cmd := tr.startDying(t, "let go")
			if ends {
				tr.tasks[0].Kill()
			} else {
				tr.check(t, 0, 0, 200)
			}
			_ = cmd.Wait()
			if cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
				t.Fatalf("the daemon: %v", cmd.ProcessState)
			}
			state := filepath.Join(tr.images, lazypages.StateName)
			if _, err := os.Stat(state); err != nil {
				t.Fatal(err)
			}
			var said bytes.Buffer
			code := run([]string{"x", "--no-default-config", "-D", tr.images, "-v4", "--resume"}, io.Discard, &said)
			if code != 0 || !strings.Contains(said.String(), "nothing is missing") {
				t.Errorf("exit status %d: %s", code, said.String())
			}
			if _, err := os.Stat(state); err == nil {
				t.Error("the state is still there")
			}
		})
	}
}

// Who goes on has to have the images that were served, as they were: others would give
// pages of another process, or of another time.
func TestResumeWithOtherImages(t *testing.T) {
	tr := plant(t, 2)
	d := start(t, tr.images, "--background", "none")
	tr.connect(t)
	tr.send(t, 0)
	tr.awaitFirst(t)
	d.kill(t)
	pages := filepath.Join(tr.images, "pages-1.img")
	was, err := os.Stat(pages)
	if err != nil {
		t.Fatal(err)
	}
	for _, content := range [][]byte{tr.want[1], tr.want[0]} {
		if err := os.WriteFile(pages, content, 0o600); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		code := run([]string{"x", "--no-default-config", "-D", tr.images, "--resume"}, io.Discard, &out)
		if code != 1 || !strings.Contains(out.String(), "not the images that the daemon before served") {
			t.Fatalf("exit status %d: %s", code, out.String())
		}
	}
	if err := os.Chtimes(pages, was.ModTime(), was.ModTime()); err != nil {
		t.Fatal(err)
	}
	tr.complete(t, start(t, tr.images, "--resume"))
}

// descriptors lists those of this process, but for the one that lists them.
func descriptors(t *testing.T) string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var list strings.Builder
	for _, e := range entries {
		if name, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			fmt.Fprintln(&list, e.Name(), name)
		}
	}
	return list.String()
}
