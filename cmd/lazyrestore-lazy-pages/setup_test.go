package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/lazypages"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/pager"
	"github.com/lazyrestore/lazyrestore/uffd"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// A tree is tasks with missing memory, the image set that has it, and what
// criu restore would say of them.
type tree struct {
	images string
	tasks  []*uffdtest.Child
	want   [][]byte
	conn   int
}

// zombie is a task of every tree.
const zombie = 4000000

// plant makes n tasks, and their images.
func plant(t *testing.T, n int) *tree {
	t.Helper()
	uffdtest.Need(t, "uffd", "root")
	tr := &tree{images: t.TempDir(), conn: -1}
	d, err := imgfile.Open(tr.images)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(d.File("pstree.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := imgfile.NewWriter(f, imgfile.MagicPstree)
	if err != nil {
		t.Fatal(err)
	}
	entry := func(pid int) {
		id := proto.Uint32(uint32(pid))
		if err := w.Encode(&pstree.PstreeEntry{Pid: id, Ppid: proto.Uint32(0), Pgid: id, Sid: id, Threads: []uint32{*id}}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		c := uffdtest.Start(t, uffdtest.Options{
			Pages:    200,
			Features: uffd.FeatureEventFork | uffd.FeatureEventRemap | uffd.FeatureEventRemove | uffd.FeatureEventUnmap,
		})
		want := uffdtest.Pattern(uint64(i)+1, int(c.Length))
		m, err := d.CreateMemory(imgfile.OfTask(c.Pid), uint32(i)+1)
		if err == nil {
			err = m.WriteBytes(page.Addr(c.Start), imgfile.Lazy, want)
		}
		if err == nil {
			err = m.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		entry(c.Pid)
		tr.tasks, tr.want = append(tr.tasks, c), append(tr.want, want)
	}
	entry(zombie)
	return tr
}

// connect is what criu restore does first.
func (tr *tree) connect(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	tr.conn = fd
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: filepath.Join(tr.images, lazypages.SocketName)}); err != nil {
		t.Fatal(err)
	}
}

// say sends a number.
func (tr *tree) say(t *testing.T, n int32) {
	t.Helper()
	if _, err := unix.Write(tr.conn, binary.NativeEndian.AppendUint32(nil, uint32(n))); err != nil {
		t.Fatal(err)
	}
}

// send sends task i, whose userfaultfd is not ours from then on.
func (tr *tree) send(t *testing.T, i int) {
	t.Helper()
	c := tr.tasks[i]
	tr.say(t, int32(c.Pid))
	if err := uffd.SendFD(tr.conn, c.FD, nil); err != nil {
		t.Fatal(err)
	}
	if err := c.FD.Close(); err != nil {
		t.Fatal(err)
	}
	c.FD = nil
}

// check compares n pages of task i from page k on.
func (tr *tree) check(t *testing.T, i, k, n int) {
	t.Helper()
	c := tr.tasks[i]
	want := uffdtest.Sum(tr.want[i][k*page.Size : (k+n)*page.Size])
	if got := c.Sum(c.Addr(k), uint64(n*page.Size)).Wait(t); got != want {
		t.Fatalf("task %d, page %d on: sum %#x, want %#x", i, k, got, want)
	}
}

// The daemon is killed while the tree is being built, at each step from that on
// at which it has a task: the next one goes on with the same connection. Before
// that there is nothing to keep, and criu restore sees its connection end.
func TestKillDuringSetUp(t *testing.T) {
	const steps = 6
	for kill := 1; kill < steps; kill++ {
		t.Run(string(rune('0'+kill)), func(t *testing.T) {
			tr := plant(t, 2)
			d := start(t, tr.images, "--background", "none")
			tr.connect(t)
			for step := 1; step < steps; step++ {
				switch step {
				case 1:
					tr.send(t, 0)
				case 2:
					tr.say(t, -zombie)
				case 3:
					tr.check(t, 0, 100, 3) // it is served before the tree is built
				case 4:
					tr.send(t, 1)
				case 5:
					tr.say(t, 0x52535446)
				}
				if step != kill {
					continue
				}
				tr.awaitFirst(t)
				d.kill(t)
				d = start(t, tr.images, "--resume")
			}
			tr.check(t, 0, 0, 200)
			tr.check(t, 1, 0, 200)
			d.wait(t)
		})
	}
}

// dieEnv has this test binary take over, and be killed when it says so in its log.
const dieEnv = "LAZYRESTORE_DIE_RESUMING"

// A killer is a log whose process is killed by a message.
type killer struct {
	slog.Handler
	message string
}

func (k killer) Enabled(context.Context, slog.Level) bool { return true }

func (k killer) Handle(_ context.Context, r slog.Record) error {
	if r.Message == k.message {
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	}
	return nil
}

// dieResuming takes over for the image set that is the first argument. With "task" it is
// the first daemon, which says so when a task has come and is not written down.
func dieResuming(message string) int {
	do := lazypages.Resume
	if message == "task" {
		do = lazypages.Serve
	}
	_, err := do(context.Background(), lazypages.Options{
		Images: os.Args[1], Background: pager.None, Logger: slog.New(killer{slog.DiscardHandler, message}),
		Ready: func() error { _, err := fmt.Println("ready"); return err },
	})
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// A daemon that takes over is killed when the keeper of the one before is gone
// and it has not written down that it has everything: the next one finds it.
func TestKillInTheMidstOfTakingOver(t *testing.T) {
	for name, built := range map[string]bool{"while the tree is built": false, "afterwards": true} {
		t.Run(name, func(t *testing.T) {
			tr := plant(t, 2)
			d := start(t, tr.images, "--background", "none")
			tr.connect(t)
			tr.send(t, 0)
			rest := func() {
				tr.say(t, -zombie)
				tr.send(t, 1)
				tr.say(t, 0x52535446)
			}
			if built {
				rest()
				tr.awaitState(t, `"connection":-1`)
			}
			tr.awaitFirst(t)
			d.kill(t)
			for range 2 { // and the one after it as well
				exe, err := os.Executable()
				if err != nil {
					t.Fatal(err)
				}
				cmd := exec.Command(exe, tr.images)
				cmd.Env = append(os.Environ(), dieEnv+"=taken over")
				out, err := cmd.CombinedOutput()
				if cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
					t.Fatalf("the one that takes over: %v, %s", err, out)
				}
			}
			d = start(t, tr.images, "--resume")
			if !built {
				rest()
			}
			tr.check(t, 0, 0, 200)
			tr.check(t, 1, 0, 200)
			d.wait(t)
		})
	}
}

// awaitFirst waits until the daemon has written down the first task.
func (tr *tree) awaitFirst(t *testing.T) {
	t.Helper()
	tr.awaitState(t, `"tasks":[`+strconv.Itoa(tr.tasks[0].Pid))
}

// awaitState waits until the daemon has written something down.
func (tr *tree) awaitState(t *testing.T, want string) {
	t.Helper()
	for end := time.Now().Add(uffdtest.Timeout); ; {
		b, err := os.ReadFile(filepath.Join(tr.images, lazypages.StateName))
		if err == nil && strings.Contains(string(b), want) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the daemon's state: %s, %v", b, err)
		}
	}
}

// A disk that is full when the tree is built costs its tasks nothing.
func TestBuiltOnAFullDisk(t *testing.T) {
	tr := plant(t, 2)
	d := start(t, tr.images)
	tr.connect(t)
	tr.send(t, 0)
	tr.say(t, -zombie)
	tr.send(t, 1)
	tr.awaitState(t, `"tasks":[`+strconv.Itoa(tr.tasks[0].Pid)+","+strconv.Itoa(tr.tasks[1].Pid)+"]")
	if err := os.Mkdir(filepath.Join(tr.images, lazypages.StateName+".new"), 0o700); err != nil { // no file can be written
		t.Fatal(err)
	}
	tr.say(t, 0x52535446)
	tr.check(t, 0, 0, 200)
	tr.check(t, 1, 0, 200)
	d.wait(t)
	if log, err := os.ReadFile(d.log); err != nil || !strings.Contains(string(log), "not written down that the tree is built") {
		t.Errorf("the log does not tell of it: %v\n%s", err, log)
	}
}

// Who is not criu restore, or not for these images, harms nobody: the daemon
// ends with an error, but not before the tasks that it has.
func TestPeersThatAreNotCRIU(t *testing.T) {
	for name, say := range map[string]func(t *testing.T, tr *tree){
		"a stranger":             func(t *testing.T, tr *tree) { tr.say(t, 12345678) },
		"built too soon":         func(t *testing.T, tr *tree) { tr.say(t, 0x52535446) },
		"the same task twice":    func(t *testing.T, tr *tree) { tr.say(t, int32(tr.tasks[0].Pid)); _, _ = unix.Write(tr.conn, []byte{0}) },
		"no descriptor":          func(t *testing.T, tr *tree) { tr.say(t, int32(tr.tasks[1].Pid)); _, _ = unix.Write(tr.conn, []byte{0}) },
		"half a word":            func(t *testing.T, tr *tree) { _, _ = unix.Write(tr.conn, []byte{1, 2}) },
		"nothing, and it leaves": func(*testing.T, *tree) {},
	} {
		t.Run(name, func(t *testing.T) {
			tr := plant(t, 2)
			d := start(t, tr.images, "--background", "none")
			tr.connect(t)
			tr.send(t, 0)
			tr.check(t, 0, 50, 2)
			say(t, tr)
			if err := unix.Shutdown(tr.conn, unix.SHUT_WR); err != nil && !errors.Is(err, unix.ENOTCONN) {
				t.Fatal(err)
			}
			tr.check(t, 0, 10, 20)
			tr.tasks[0].Kill()
			var exit *exec.ExitError
			if err := d.cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
				t.Errorf("the daemon: %v, want exit status 1", err)
			}
		})
	}
}
