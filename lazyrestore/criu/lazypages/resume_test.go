package lazypages

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/pager"
	"github.com/lazyrestore/lazyrestore/uffd"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

func TestMain(m *testing.M) { uffdtest.Main(m) }

// comingTask is a daemon that is to take over, and a keeper to take over from, who has
// the connection, and of a tree whose first task was written down the userfaultfd of the
// second alone. It shares this process's descriptors.
func comingTask(t *testing.T) (d *daemon, k *pager.Keeper, u *uffd.FD, conn int) {
	t.Helper()
	uffdtest.Need(t, "uffd")
	c := uffdtest.Start(t, uffdtest.Options{Pages: 4})
	k, err := pager.StartKeeper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	ours, err := pager.StartKeeper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ours.Close() })
	p, err := pager.New(nil, pager.Options{Keeper: ours, Gather: true})
	if err != nil {
		t.Fatal(err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Close(fds[0])
		_ = unix.Close(fds[1])
	})
	d = &daemon{pager: p, keeper: ours, listener: -1, queue: -1, state: newState(t.TempDir(), ours, "")}
	d.state.Coming, d.state.Tasks = c.Pid, []int{1}
	return d, k, c.FD, fds[0]
}

// What was taken of the setting-up in vain is given back to a keeper that has it.
func TestFailedTakeOverGivesBack(t *testing.T) {
	d, k, _, conn := comingTask(t)
	open := func() (list []int) {
		for fd := range 256 {
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
				list = append(list, fd)
			}
		}
		return list
	}
	left := *d.state
	if _, err := os.ReadDir("/proc/self/fd"); err != nil { // what the runtime keeps is open
		t.Fatal(err)
	}
	before := open()
	if _, err := d.takeFrom(t.Context(), keeper{Pid: k.Pid(), Connection: conn}, &left, d.state.Keepers[0]); !errors.Is(err, pager.ErrNoPredecessor) {
		t.Fatalf("takeFrom: %v, want that there is no state", err)
	}
	d.state.letGo()
	if after := open(); !slices.Equal(before, after) {
		t.Errorf("open are %v, %v were", after, before)
	}
	if d.pager.Holds() {
		t.Error("the new pager holds a task that the old keeper has")
	}
}

// Nothing is written down where there is nothing to take, for another daemon may have written there that it has taken it.
func TestNothingToTakeIsNotWritten(t *testing.T) {
	d, k, _, _ := comingTask(t)
	left := *d.state
	if _, err := d.takeFrom(t.Context(), keeper{Pid: k.Pid(), Connection: -1}, &left, d.state.Keepers[0]); !errors.Is(err, pager.ErrNoPredecessor) {
		t.Errorf("takeFrom: %v, want that there is no state", err)
	}
	if _, err := os.Stat(d.state.path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a state was written (%v)", err)
	}
}

// A keeper shows to other pid namespaces that it lives also once somebody has written that he takes over, and then could not, or
// was killed before he had.
func TestFailedTakeOverLeavesTheLock(t *testing.T) {
	d, k, _, conn := comingTask(t)
	before := newState(filepath.Dir(d.state.path), k, "")
	before.Keepers[0].Connection = conn
	if err := before.write(); err != nil {
		t.Fatal(err)
	}
	held := func(want bool) {
		t.Helper()
		if held, err := before.isHeld(); held != want || err != nil {
			t.Errorf("held: %v, %v; want %v", held, err, want)
		}
	}
	left, err := readState(filepath.Dir(d.state.path))
	if err != nil {
		t.Fatal(err)
	}
	left.Coming, left.Tasks = d.state.Coming, d.state.Tasks
	if _, err := d.takeOver(t.Context(), left); !errors.Is(err, pager.ErrNoPredecessor) {
		t.Fatalf("takeOver: %v, want that there is no state", err)
	}
	held(true)
	killed := newState(filepath.Dir(d.state.path), k, "")
	if err := killed.write(); err != nil {
		t.Fatal(err)
	}
	killed.letGo()
	held(true)
	before.letGo()
	held(false)
}

// Where it cannot be told whether anybody is left in another pid namespace, another daemon stays out.
func TestNobodyTellsOfAnotherPIDNamespace(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"no file":          func(string) error { return nil },
		"not to be opened": func(path string) error { return os.Mkdir(path, 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			content := fmt.Sprintf(`{"pid_namespace":%d,"images":"x","keepers":[{"pid":1,"connection":-1}],"tasks":[7]}`, pidNamespace()+1)
			if err := errors.Join(os.WriteFile(filepath.Join(dir, StateName), []byte(content), 0o600), spoil(filepath.Join(dir, HeldName))); err != nil {
				t.Fatal(err)
			}
			if err := (&Options{Images: dir}).nobodyWaits(); !errors.Is(err, ErrLeft) {
				t.Errorf("nobodyWaits: %v, want that tasks may wait", err)
			}
			if _, err := Resume(t.Context(), Options{Images: dir}); !errors.Is(err, ErrLeft) || errors.Is(err, pager.ErrNoPredecessor) {
				t.Errorf("Resume: %v, want that tasks may wait elsewhere", err)
			}
		})
	}
}

// The userfaultfd of a task that was coming stays open where the keeper that it was
// taken from has ended.
func TestOrphanMayBeTheLast(t *testing.T) {
	d, k, _, conn := comingTask(t)
	of, err := pager.OpenLeft(k.Pid())
	if err != nil {
		t.Fatal(err)
	}
	defer of.Close()
	up, err := d.takeSetUp(of, conn, nil)
	if err != nil || up.orphan == nil {
		t.Fatalf("takeSetUp = %v, %v", up, err)
	}
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	d.state.Keepers[0].Connection = up.conn
	if err := d.putBack(of, &up); err != nil {
		t.Fatal(err)
	}
	if err := d.pager.Discard(); err != nil || !d.pager.Holds() || up.orphan.Fd() < 0 {
		t.Errorf("the last userfaultfd of a task is let go (%v)", err)
	}
	if next, err := readState(filepath.Dir(d.state.path)); err != nil || len(next.Keepers) != 1 || next.Keepers[0].Connection != -1 {
		t.Errorf("the state is %+v, %v; want our keeper, without a connection", next, err)
	}
	_ = up.orphan.Close()
}

// A task that cannot be attached is held until criu restore, who sees that, has ended it:
// it never reads zeros, also where no other task is there, and where it was not taken yet.
func TestTaskThatCannotBeAttached(t *testing.T) {
	for name, spoil := range map[string]func(d *daemon, pid int, m page.Mapping){
		"twice in one place": func(d *daemon, pid int, m page.Mapping) { d.set.tasks[pid] = []page.Mapping{m, m} },
		"not in the images":  func(d *daemon, _ int, m page.Mapping) { d.set.tasks[1] = []page.Mapping{m} },
		"without a pagemap": func(d *daemon, pid int, _ page.Mapping) {
			d.set.tasks[pid], d.set.bare = nil, map[int]bool{pid: true}
		},
		"no room to note it": func(d *daemon, pid int, m page.Mapping) {
			d.set.tasks[pid] = []page.Mapping{m}
			d.state.path = filepath.Join(d.state.path, "no", "directory")
		},
	} {
		t.Run(name, func(t *testing.T) { testUnattached(t, spoil) })
	}
}

func testUnattached(t *testing.T, spoil func(d *daemon, pid int, m page.Mapping)) {
	t.Helper()
	uffdtest.Need(t, "uffd")
	c := uffdtest.Start(t, uffdtest.Options{Pages: 4})
	mem, _ := imagetest.Write(t, image.WriterOptions{}, imagetest.Run{At: page.Addr(c.Start), P: make([]byte, c.Length)})
	img, err := image.Open(t.Context(), mem, image.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	k, err := pager.StartKeeper()
	if err != nil {
		t.Fatal(err)
	}
	p, err := pager.New(img, pager.Options{Gather: true, Keeper: k})
	if err != nil {
		t.Fatal(err)
	}
	criu, ours := socketpair(t)
	m := page.Mapping{Range: page.RangeOf(page.Addr(c.Start), c.Length), Image: page.Addr(c.Start), PageSize: page.Size}
	d := &daemon{
		pager: p, keeper: k, listener: -1, queue: -1, state: newState(t.TempDir(), k, ""), log: slog.New(slog.DiscardHandler),
		set: &set{tasks: map[int][]page.Mapping{}},
	}
	if d.dir, err = imgfile.Open(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	spoil(d, c.Pid, m)
	if _, err := unix.Write(criu, binary.NativeEndian.AppendUint32(nil, uint32(c.Pid))); err != nil {
		t.Fatal(err)
	}
	if err := uffd.SendFD(criu, c.FD, nil); err != nil {
		t.Fatal(err)
	}
	_ = c.FD.Close()
	served := make(chan error, 1)
	go func() {
		_, err := d.serve(t.Context(), func(*waker) (int, error) { return ours, nil })
		served <- err
	}()
	if n, _, err := unix.Recvfrom(criu, make([]byte, 1), 0); n != 0 || err != nil { // what criu restore waits for
		t.Errorf("the connection gives %d bytes, %v", n, err)
	}
	touch := c.Load(c.Addr(1))
	if touch.Ready(20 * time.Millisecond) {
		t.Error("a page that is missing was read")
	}
	select {
	case err := <-served:
		t.Errorf("the task lives, and Serve has returned: %v", err)
	default:
	}
	c.Kill()
	select {
	case err := <-served:
		if err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("Serve: %v, want why the task cannot be attached", err)
		}
	case <-time.After(uffdtest.Timeout):
		t.Error("Serve does not return after its task is gone")
	}
}

// A daemon that is to end while criu restore is connected, and has said nothing, leaves no connection on which it could still say
// something.
func TestEndWithASilentConnection(t *testing.T) {
	mem, _ := imagetest.Write(t, image.WriterOptions{}, imagetest.Run{At: at, P: make([]byte, page.Size)})
	img, err := image.Open(t.Context(), mem, image.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	k, err := pager.StartKeeper()
	if err != nil {
		t.Fatal(err)
	}
	p, err := pager.New(img, pager.Options{Gather: true, Keeper: k})
	if err != nil {
		t.Fatal(err)
	}
	criu, ours := socketpair(t)
	d := &daemon{
		pager: p, keeper: k, listener: -1, queue: -1, state: newState(t.TempDir(), k, ""), log: slog.New(slog.DiscardHandler),
		set: &set{tasks: map[int][]page.Mapping{1: nil}},
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := d.serve(ctx, func(*waker) (int, error) {
		d.speaks(ours)
		cancel()
		return ours, nil
	}); !errors.Is(err, context.Canceled) {
		t.Errorf("Serve: %v, want %v", err, context.Canceled)
	}
	if _, err := unix.Write(criu, []byte("1234")); !errors.Is(err, unix.EPIPE) {
		t.Errorf("criu restore speaks, and gets %v; want %v", err, unix.EPIPE)
	}
	if _, err := os.Stat(d.state.path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the state is still there (%v)", err)
	}
}

func socketpair(t *testing.T) (a, b int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fds[0]) })
	if err := unix.SetNonblock(fds[1], true); err != nil {
		t.Fatal(err)
	}
	return fds[0], fds[1]
}

// A state that a crash of the machine has damaged, as it is not synced, keeps no daemon out.
func TestDamagedStateKeepsNobodyOut(t *testing.T) {
	for name, content := range map[string]string{"empty": "", "cut": `{"images":"x","keepers":[{"pid":1`, "zeros": "\x00\x00\x00"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, StateName), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			o := &Options{Images: dir, Logger: slog.New(slog.NewTextHandler(&log, nil))}
			if err := o.nobodyWaits(); err != nil {
				t.Error(err)
			}
			if !strings.Contains(log.String(), "level=WARN") {
				t.Errorf("no warning: %s", log.String())
			}
		})
	}
}
