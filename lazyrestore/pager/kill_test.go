package pager

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// These tests kill the pager, so it is a process of its own: this test binary
// again.
const helperEnv = "LAZYRESTORE_PAGER_HELPER"

// helperConfig is what that process is told. Its descriptor 3 is the uffd.
type helperConfig struct {
	Dir  string // the image's objects
	Pid  int
	Maps []page.Mapping
	Full bool
	Low  bool   // the uffd gets the number of a standard descriptor
	From int    // the keeper to take over from; see takeHalf
	Let  string // how far it gets with letting go; see letHalf
	UID  int    // the user that it becomes
	// Claims: and it says so in what that keeper has.
	Claims bool
	// Stopped: its keeper never runs.
	Stopped bool
	// Beside: it has the userfaultfd of a process that has ended too.
	Beside bool
}

func TestMain(m *testing.M) {
	if c := os.Getenv(helperEnv); c != "" {
		if err := beHelper(c); err != nil {
			fmt.Fprintln(os.Stderr, "pager:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if c := os.Getenv(toucherEnv); c != "" {
		if err := beToucher(c); err != nil {
			fmt.Fprintln(os.Stderr, "toucher:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	uffdtest.Main(m)
}

// beHelper is the pager's process: it says its keeper's id, and serves.
func beHelper(config string) error {
	var c helperConfig
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		return err
	}
	start := StartKeeper
	if c.Stopped {
		start = startStopped
	}
	keeper, err := start()
	if err != nil {
		return err
	}
	img, err := openObjects(c.Dir)
	if err != nil {
		return err
	}
	opts := Options{Keeper: keeper, Background: None}
	if c.Full {
		opts.Background = Full
	}
	p, err := New(img, opts)
	if err != nil {
		return err
	}
	if c.From != 0 {
		return p.takeHalf(c.From, c.Claims)
	}
	fd := 3
	if c.Low {
		if err := unix.Dup3(fd, 0, unix.O_CLOEXEC); err != nil {
			return err
		}
		_ = unix.Close(fd)
		fd = 0
	}
	u, target := uffd.FromFD(fd), Target{Pid: c.Pid, PidFD: -1}
	if err := p.Attach(u, target, c.Maps); err != nil {
		return err
	}
	if c.Let != "" {
		return p.letHalf(u, c.Let)
	}
	if c.UID != 0 {
		if err := syscall.Setuid(c.UID); err != nil {
			return err
		}
	}
	fmt.Println(keeper.Pid())
	return p.Serve(context.Background(), u, target, c.Maps)
}

func openObjects(dir string) (*image.Image, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	mem := new(imagetest.Mem)
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		mem.Set(e.Name(), b)
	}
	return image.Open(context.Background(), mem, image.OpenOptions{})
}

// A victim is a child whose pager is a process that can be killed.
type victim struct {
	served
	pagerCmd *exec.Cmd
	keeper   int
	dir      string
}

func startVictim(t *testing.T, set setting, full bool) *victim {
	t.Helper()
	return startVictimOf(t, set, helperConfig{Full: full})
}

// startVictimOf is startVictim with all of what the pager is told that has to
// do with no child.
func startVictimOf(t *testing.T, set setting, c helperConfig) *victim {
	t.Helper()
	uffdtest.Need(t, "uffd")
	set.child.Features |= events
	v := &victim{dir: t.TempDir()}
	v.Child = uffdtest.Start(t, set.child)
	v.makeImage(t, set)
	for _, name := range v.mem.Names() {
		if err := os.WriteFile(filepath.Join(v.dir, name), v.mem.Get(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.Dir, c.Pid, c.Maps = v.dir, v.Pid, v.maps
	config, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(v.FD.Fd()), "uffd")
	v.FD = nil
	v.pagerCmd = exec.Command(exe)
	v.pagerCmd.Env = append(os.Environ(), helperEnv+"="+string(config))
	v.pagerCmd.ExtraFiles = []*os.File{file}
	if c.Beside {
		beside := uffdtest.Start(t, uffdtest.Options{Pages: 1})
		beside.Kill()
		beside.WaitExit(t)
		other := os.NewFile(uintptr(beside.FD.Fd()), "uffd")
		beside.FD = nil
		defer other.Close()
		v.pagerCmd.ExtraFiles = append(v.pagerCmd.ExtraFiles, other)
	}
	v.pagerCmd.Stderr = os.Stderr
	out, err := v.pagerCmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := v.pagerCmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.killPager)
	_ = file.Close()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the pager did not start: %v", err)
	}
	if v.keeper, err = strconv.Atoi(strings.TrimSpace(line)); err != nil {
		t.Fatal(err)
	}
	return v
}

func (v *victim) killPager() {
	_ = v.pagerCmd.Process.Kill()
	_ = v.pagerCmd.Wait()
}

// resume takes over, and returns when all is resident.
func (v *victim) resume(t *testing.T) {
	t.Helper()
	if err := v.tryResume(t); err != nil {
		t.Fatal(err)
	}
}

// tryResume is resume with the error of that.
func (v *victim) tryResume(t *testing.T) error {
	t.Helper()
	img, err := openObjects(v.dir)
	if err != nil {
		t.Fatal(err)
	}
	p, err := New(img, Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), uffdtest.Timeout)
	defer cancel()
	return p.Resume(ctx, v.keeper, Target{Pid: v.Pid, PidFD: -1})
}

// waits expects that nobody answers r for a while.
func waits(t *testing.T, r *uffdtest.Reply) {
	t.Helper()
	if r.Ready(20 * time.Millisecond) {
		t.Fatal("a missing page was read while no pager lived")
	}
}

// Killed right after an event of each kind, whose only trace is what the
// kernel wrote into the state: the program waits, and a successor gives it
// the right bytes.
func TestKilledAfterEvent(t *testing.T) {
	const n = 256
	events := []struct {
		name string
		do   func(t *testing.T, v *victim) func() // returns the check of what the event touched
	}{
		{"fault", func(t *testing.T, v *victim) func() {
			v.Load(v.Addr(100)).Wait(t)
			return func() { v.check(t, v.Thread) }
		}},
		{"remove", func(t *testing.T, v *victim) func() {
			v.Madvise(v.Addr(100), 50*page.Size, unix.MADV_DONTNEED).Wait(t)
			return func() {
				zero(t, v.Thread, v.Addr(100), 50*page.Size)
				v.checkAt(t, v.Thread, v.Addr(150), 150*page.Size, 50*page.Size)
			}
		}},
		{"unmap", func(t *testing.T, v *victim) func() {
			v.Munmap(v.Addr(100), 50*page.Size).Wait(t)
			v.Mmap(v.Addr(100), 50*page.Size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_FIXED).Wait(t)
			return func() {
				zero(t, v.Thread, v.Addr(100), 50*page.Size)
				v.checkAt(t, v.Thread, v.Addr(150), 150*page.Size, 50*page.Size)
			}
		}},
		{"remap", func(t *testing.T, v *victim) func() {
			to := v.Start + 1<<30
			v.Mremap(v.Addr(100), 50*page.Size, 50*page.Size, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, to).Wait(t)
			return func() { v.checkAt(t, v.Thread, to, 100*page.Size, 50*page.Size) }
		}},
		{"guard", func(t *testing.T, v *victim) func() {
			v.guard(t, 100, 4)
			for _, beside := range []int{99, 105, 106, 180} { // it is looked at, and what was seen noted before the last comes
				v.Load(v.Addr(beside)).Wait(t)
			}
			v.unguard(t, 100, 4)
			return func() { zero(t, v.Thread, v.Addr(100), 4*page.Size) }
		}},
		{"fork", func(t *testing.T, v *victim) func() {
			th, pid := v.Fork(t)
			pid.Wait(t)
			return func() { v.check(t, th) }
		}},
	}
	for _, e := range events {
		t.Run(e.name, func(t *testing.T) {
			v := startVictim(t, setting{child: uffdtest.Options{Pages: n}}, false)
			v.Store(v.Addr(3), 1).Wait(t)
			check := e.do(t, v)
			v.killPager()
			waiting := v.Load(v.Addr(220))
			waits(t, waiting)
			v.resume(t)
			if got, want := waiting.Wait(t), uint64(v.want[220*page.Size]); got != want {
				t.Errorf("the page waited for begins with %d, want %d", got, want)
			}
			v.want[3*page.Size] = 1
			if e.name == "fork" {
				if got := v.Load(v.Addr(3)).Wait(t); got != 1 {
					t.Errorf("what was stored is now %d", got)
				}
			}
			check()
			v.checkAt(t, v.Thread, v.Start, 0, 100*page.Size)
			v.checkAt(t, v.Thread, v.Addr(200), 200*page.Size, 56*page.Size)
		})
	}
}

// Killed while the background fills.
func TestKilledWhileFilling(t *testing.T) {
	for _, wait := range []time.Duration{0, time.Millisecond, 3 * time.Millisecond} {
		v := startVictim(t, setting{child: uffdtest.Options{Pages: 8192}}, true)
		deadline := time.Now().Add(wait)
		sum := v.Sum(v.Start, v.Length)
		for time.Now().Before(deadline) && !sum.Ready(0) { //nolint:revive // the pager is to be killed at some moment in between
		}
		v.killPager()
		// It may have been done, and its keeper still be there, if only until somebody waits for it.
		if err := v.tryResume(t); err != nil && !errors.Is(err, ErrNoPredecessor) {
			t.Fatal(err)
		}
		if got, want := sum.Wait(t), uffdtest.Sum(v.want); got != want {
			t.Errorf("killed after %v: sum %#x, want %#x", wait, got, want)
		}
		v.Madvise(v.Start, page.Size, unix.MADV_DONTNEED).Wait(t) // what nobody serves waits for nobody
	}
}

// A keeper ends by itself once the pager and all whom it served are gone, and
// not before.
func TestKeeperOutlivesPagerOnly(t *testing.T) {
	v := startVictim(t, setting{child: uffdtest.Options{Pages: 64}}, false)
	v.Load(v.Addr(1)).Wait(t)
	th, pid := v.Fork(t)
	child := int(pid.Wait(t))
	pidfd, err := unix.PidfdOpen(v.keeper, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(pidfd) }()
	ended := func(within time.Duration) bool { return uffdtest.Readable(pidfd, within) }
	v.killPager()
	v.Kill()
	waits(t, th.Load(v.Addr(40)))
	if ended(1500 * time.Millisecond) {
		t.Fatal("the keeper ended while a forked child waits for pages")
	}
	// It has looked a first time, and sleeps between its looks: what it takes
	// from now on is next to nothing.
	before := cpuTicks(t, v.keeper)
	if ended(2500 * time.Millisecond) {
		t.Fatal("the keeper ended while a forked child waits for pages")
	}
	if used := cpuTicks(t, v.keeper) - before; used > 25 {
		t.Errorf("the keeper took %d hundredths of a second in 2.5 seconds", used)
	}
	if err := unix.Kill(child, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if !ended(uffdtest.Timeout) {
		t.Error("the keeper lives on though nobody is left")
	}
}

// A keeper is told nothing of the end of a pager that may not signal it, and sees it.
func TestKeeperOfAnotherUser(t *testing.T) {
	uffdtest.Need(t, "root")
	v := startVictimOf(t, setting{child: uffdtest.Options{Pages: 16}}, helperConfig{UID: 65534})
	v.Load(v.Addr(1)).Wait(t)
	v.killPager()
	v.Kill()
	awaitEnd(t, v.keeper)
}

// A keeper that closes the standard descriptors spares a uffd among them.
func TestKeeperSparesLowDescriptors(t *testing.T) {
	v := startVictimOf(t, setting{child: uffdtest.Options{Pages: 64}}, helperConfig{Low: true})
	v.Load(v.Addr(1)).Wait(t)
	v.killPager()
	waiting := v.Load(v.Addr(40))
	waits(t, waiting)
	v.resume(t)
	if got, want := waiting.Wait(t), uint64(v.want[40*page.Size]); got != want {
		t.Errorf("the page waited for begins with %d, want %d", got, want)
	}
}

// cpuTicks is the processor time that a process has taken, in clock ticks.
func cpuTicks(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	sum := 0
	for _, f := range fields[11:13] { // utime and stime
		n, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}

func TestKeeperIsSmallAndEnds(t *testing.T) {
	k, err := StartKeeper()
	if err != nil {
		t.Fatal(err)
	}
	// Its code, its page, and some around the thread pointer.
	const most = 128 << 10
	size := uint64(most + 1)
	deadline := time.Now().Add(uffdtest.Timeout)
	for size > most && time.Now().Before(deadline) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", k.Pid()))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Sscan(string(b), &size); err != nil {
			t.Fatal(err)
		}
		size <<= page.Shift
	}
	if size == 0 || size > most {
		t.Errorf("the keeper has %d bytes of memory, want a few pages", size)
	}
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(k.Pid(), 0); err == nil {
		t.Error("the keeper has not ended")
	}
}
