package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/criutest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/lazypages"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// roleEnv makes this test binary the command.
const roleEnv = "LAZYRESTORE_LAZY_PAGES"

func TestMain(m *testing.M) {
	uffdtest.BeChild()
	if message := os.Getenv(dieEnv); message != "" {
		os.Exit(dieResuming(message))
	}
	if os.Getenv(roleEnv) != "" {
		os.Exit(run(os.Args, os.Stdout, os.Stderr))
	}
	os.Exit(criutest.Main(m))
}

// A daemon is the command at work.
type daemon struct {
	cmd *exec.Cmd
	log string
	err bytes.Buffer
}

// start runs the command and waits until it says on its status descriptor that
// it is ready.
func start(t *testing.T, images string, args ...string) *daemon {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{log: filepath.Join(images, "lazy-pages.log")}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	d.cmd = exec.Command(exe, append([]string{"--no-default-config", "-D", images, "-v4", "-o", "lazy-pages.log", "--status-fd", "3"}, args...)...)
	d.cmd.Env = append(os.Environ(), roleEnv+"=1")
	d.cmd.ExtraFiles = []*os.File{w}
	d.cmd.Stderr = &d.err
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	t.Cleanup(func() {
		_ = d.cmd.Process.Kill()
		_ = d.cmd.Wait()
		if text, err := os.ReadFile(d.log); err == nil && t.Failed() {
			t.Logf("%s:\n%s", d.log, text)
		}
	})
	if n, err := r.Read(make([]byte, 2)); n != 1 || err != nil {
		t.Fatalf("status descriptor: %d bytes, %v; %s", n, err, d.err.Bytes())
	}
	return d
}

// wait waits until the command ends well.
func (d *daemon) wait(t *testing.T) {
	t.Helper()
	timer := time.AfterFunc(criutest.Patience, func() { _ = d.cmd.Process.Kill() })
	defer timer.Stop()
	if err := d.cmd.Wait(); err != nil {
		t.Fatalf("the daemon: %v; %s", err, d.err.Bytes())
	}
	if keepers := keepersOf(t, d); len(keepers) > 0 {
		t.Errorf("keepers %v outlive the daemon", keepers)
	}
}

// keepersOf lists keepers whose state is in the log's directory.
func keepersOf(t *testing.T, d *daemon) []string {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(filepath.Dir(d.log), lazypages.StateName))
	if err != nil {
		t.Fatal(err)
	}
	return left
}

// kill kills the daemon as the kernel does when memory is short.
func (d *daemon) kill(t *testing.T) {
	t.Helper()
	if err := d.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Wait(); !errors.As(err, new(*exec.ExitError)) {
		t.Fatalf("the daemon: %v", err)
	}
}

func TestRestoreFromAnImageSet(t *testing.T) {
	criutest.Need(t)
	for _, tt := range []struct {
		scene string
		mib   int
		args  []string
	}{
		{"plain", 16, nil},
		{"plain", 16, []string{"--background", "none"}},
		{"plain", 1024, nil},
		{"threads", 32, nil},
		{"tree", 8, nil},
		{"tree", 8, []string{"--background", "none"}},
		{"changes", 16, nil},
		{"changes", 16, []string{"--background", "none"}},
	} {
		t.Run(strings.Join(append([]string{tt.scene, strconv.Itoa(tt.mib)}, tt.args...), " "), func(t *testing.T) {
			images := t.TempDir()
			s := criutest.Start(t, tt.scene, tt.mib)
			s.Dump(t, images)
			d := start(t, images, tt.args...)
			s.Restore(t, images, "--lazy-pages")
			s.Tell(t, "go")
			s.Wait(t)
			d.wait(t)
		})
	}
}

// The background alone makes everything resident, while the program sleeps.
func TestBackgroundEndsTheDaemon(t *testing.T) {
	criutest.Need(t)
	images := t.TempDir()
	s := criutest.Start(t, "tree", 8)
	s.Dump(t, images)
	d := start(t, images)
	s.Restore(t, images, "--lazy-pages")
	d.wait(t)
	s.Tell(t, "go")
	s.Wait(t)
}

// Sets that build on one another: pages of the tasks are spread over three.
func TestRestoreFromAChain(t *testing.T) {
	criutest.Need(t)
	base := t.TempDir()
	images := filepath.Join(base, "2")
	for i := range 3 {
		if err := os.Mkdir(filepath.Join(base, strconv.Itoa(i)), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s := criutest.Start(t, "tree", 8)
	s.Dump(t, images)
	spread(t, base, 3)
	d := start(t, images)
	s.Restore(t, images, "--lazy-pages")
	s.Tell(t, "go")
	s.Wait(t)
	d.wait(t)
}

// spread turns the set base/N-1 into a chain of n sets that hold together what
// it held: which of them has a page depends on its number.
func spread(t *testing.T, base string, n int) {
	t.Helper()
	sets := make([]*imgfile.Dir, n)
	for i := range sets {
		d, err := imgfile.Open(filepath.Join(base, strconv.Itoa(i)))
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			if err := d.LinkParent("../" + strconv.Itoa(i-1)); err != nil {
				t.Fatal(err)
			}
		}
		sets[i] = d
	}
	top := sets[n-1]
	tasks, err := top.Tasks()
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		id := imgfile.OfTask(task.Pid)
		pm, err := top.Pagemap(id)
		if err != nil {
			t.Fatal(err)
		}
		pages, err := os.ReadFile(top.File(imgfile.PagesName(pm.PagesID)))
		if err != nil {
			t.Fatal(err)
		}
		for level, d := range sets {
			w, err := d.CreateMemory(id, pm.PagesID)
			if err != nil {
				t.Fatal(err)
			}
			off := 0
			for _, e := range pm.Entries {
				for at := e.Start; at < e.End; at += page.Size {
					has := int(at>>page.Shift) % n
					if e.Flags&imgfile.Lazy == 0 {
						has = n - 1
					}
					one := imgfile.Entry{Range: page.RangeOf(at, page.Size), Flags: e.Flags&imgfile.Lazy | imgfile.Parent}
					switch {
					case has == level:
						err = w.WriteBytes(at, e.Flags, pages[off:off+page.Size])
					case has < level:
						err = w.Add(one)
					}
					if err != nil {
						t.Fatal(err)
					}
					off += page.Size
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// The daemon is killed after each kind of event, and another one goes on.
func TestKillAndResume(t *testing.T) {
	criutest.Need(t)
	for _, kind := range []string{"fork", "remap", "remove", "unmap", "exit"} {
		t.Run(kind, func(t *testing.T) {
			images := t.TempDir()
			s := criutest.Start(t, kind, 8)
			s.Dump(t, images)
			d := start(t, images, "--background", "none")
			s.Restore(t, images, "--lazy-pages")
			s.Tell(t, "go")
			s.Await(t, "done")
			d.kill(t)
			s.Tell(t, "check")
			next := start(t, images, "--resume")
			s.Wait(t)
			next.wait(t)
		})
	}
}

// Two daemons are killed in a row, in the midst of everything.
func TestKillTwice(t *testing.T) {
	criutest.Need(t)
	images := t.TempDir()
	s := criutest.Start(t, "changes-held", 16) // or all might be over before a kill
	s.Dump(t, images)
	d := start(t, images, "--background", "none")
	s.Restore(t, images, "--lazy-pages")
	s.Tell(t, "go")
	d.kill(t)
	d = start(t, images, "--background", "none", "--resume")
	d.kill(t)
	d = start(t, images, "--resume")
	s.Tell(t, "check")
	s.Wait(t)
	d.wait(t)
}

// A daemon that is asked to end leaves its tasks to the next one.
func TestTerminateAndResume(t *testing.T) {
	criutest.Need(t)
	images := t.TempDir()
	s := criutest.Start(t, "plain", 16)
	s.Dump(t, images)
	d := start(t, images, "--background", "none")
	s.Restore(t, images, "--lazy-pages")
	if err := d.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := d.cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Fatalf("the daemon: %v, want exit status 1", err)
	}
	s.Tell(t, "go")
	d = start(t, images, "--resume")
	s.Wait(t)
	d.wait(t)
}

func TestNothingToResume(t *testing.T) {
	criutest.Need(t)
	images := t.TempDir()
	s := criutest.Start(t, "plain", 4)
	s.Dump(t, images)
	var out bytes.Buffer
	if code := run([]string{"x", "--no-default-config", "-D", images, "--resume"}, io.Discard, &out); code != 1 || !strings.Contains(out.String(), "no pager to take over from") {
		t.Errorf("exit status %d: %s", code, out.String())
	}
}

// criu restore fails, and says so, where the daemon has not all of its images.
func TestDamagedSet(t *testing.T) {
	criutest.Need(t)
	images := t.TempDir()
	s := criutest.Start(t, "plain", 4)
	s.Dump(t, images)
	if err := os.Truncate(filepath.Join(images, "pages-1.img"), 8192); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if code := run([]string{"x", "--no-default-config", "-D", images}, io.Discard, &out); code != 1 || !strings.Contains(out.String(), "pages-1.img at offset 8192: 8192 bytes long, and its pagemap lists ") {
		t.Errorf("exit status %d: %s", code, out.String())
	}
}

func TestDaemonMode(t *testing.T) {
	criutest.Need(t)
	images := t.TempDir()
	s := criutest.Start(t, "plain", 8)
	s.Dump(t, images)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "--no-default-config", "-D", images, "-d", "--pidfile", "lp.pid", "-v4", "-o", "lp.log")
	cmd.Env = append(os.Environ(), roleEnv+"=1")
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("%v: %s", err, out)
	}
	text, err := os.ReadFile(filepath.Join(images, "lp.pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(string(text))
	if err != nil {
		t.Fatal(err)
	}
	s.Restore(t, images, "--lazy-pages")
	s.Tell(t, "go")
	s.Wait(t)
	var status unix.WaitStatus
	if _, err := unix.Wait4(pid, &status, 0, nil); err != nil || !status.Exited() || status.ExitStatus() != 0 {
		log, _ := os.ReadFile(filepath.Join(images, "lp.log"))
		t.Errorf("daemon %d ended with %#x (%v):\n%s", pid, uint32(status), err, log)
	}
}
