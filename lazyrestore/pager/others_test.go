package pager

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// takeHalf takes over from a keeper and is killed before it ends that; with claims just before.
func (p *Pager) takeHalf(keeper int, claims bool) error {
	k, err := OpenLeft(keeper)
	if err != nil {
		return err
	}
	if _, err := p.takeAll(context.Background(), k, Target{PidFD: -1}); err != nil {
		return err
	}
	if claims {
		k.found.claim()
	}
	fmt.Println(p.opts.Keeper.Pid())
	return unix.Kill(os.Getpid(), unix.SIGKILL)
}

// successor is the keeper of a pager that took over from v's and was killed before it had ended v's keeper, with claims
// just before.
func (v *victim) successor(t *testing.T, claims bool) int {
	t.Helper()
	config, err := json.Marshal(helperConfig{Dir: v.dir, From: v.keeper, Claims: claims})
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), helperEnv+"="+string(config))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	_ = cmd.Wait()
	keeper, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatalf("the successor says %q", line)
	}
	return keeper
}

// awaitEnd waits until a process that is no child has ended.
func awaitEnd(t *testing.T, pid int) {
	t.Helper()
	k, err := OpenLeft(pid)
	if err != nil {
		return
	}
	defer k.Close()
	if !uffdtest.Readable(k.pidfd, uffdtest.Timeout) {
		t.Errorf("keeper %d lives", pid)
		_ = k.kill()
	}
}

// Of two keepers that hold the same, whichever is taken over from, none is left, and memory that the
// process gets afterwards waits for nobody. One that holds more than what was taken over stays.
func TestTwoKeepers(t *testing.T) {
	for name, second := range map[string]bool{"the first": false, "the second": true} {
		t.Run(name, func(t *testing.T) {
			const n = 64
			v := startVictim(t, setting{child: uffdtest.Options{Pages: n}}, false)
			to := v.Start + 1<<30
			v.Mremap(v.Start, n*page.Size, (n+8)*page.Size, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, to).Wait(t)
			v.killPager()
			keepers := [2]int{v.keeper, v.successor(t, false)}
			if second {
				v.keeper = keepers[1]
			}
			other := startVictim(t, setting{child: uffdtest.Options{Pages: n}}, false)
			other.killPager()
			v.resume(t)
			for _, k := range keepers {
				awaitEnd(t, k)
			}
			zero(t, v.Thread, to+n*page.Size, 8*page.Size)
			v.checkAt(t, v.Thread, to, 0, n*page.Size)
			v.Munmap(to+n*page.Size, 8*page.Size).Wait(t)
			if ended(other.keeper) {
				t.Fatal("the keeper of another process is ended")
			}
			other.resume(t)
			other.check(t, other.Thread)
		})
	}
}

// A keeper that holds more than what is ours, or whose pager lives, is left alone.
func TestKeepersOfOthersStay(t *testing.T) {
	v := startVictim(t, setting{child: uffdtest.Options{Pages: 16}}, false)
	k, err := OpenLeft(v.keeper)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	own, err := k.Userfaultfds()
	if err != nil || len(own) != 1 {
		t.Fatalf("the keeper has %v, %v", own, err)
	}
	if k.isOrphan() {
		t.Error("the keeper's pager lives, and it is said to be gone")
	}
	if waits, err := k.Waits(-1); !waits || err != nil {
		t.Errorf("a process that lives waits, if the pager serves no more: %v, %v", waits, err)
	}
	if k.holdsNoneBut(nil) {
		t.Error("a keeper that holds what is not ours is said to hold nothing else")
	}
	fd, err := k.Take(own[0])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if !k.holdsNoneBut([]int{fd}) {
		t.Error("a keeper that holds what is ours is said to hold more")
	}
	v.killPager()
	if !k.isOrphan() {
		t.Error("the keeper's pager is gone, and it is said to live")
	}
}

// onThreadThatEnds has a thread call f that ends then, and returns its id.
func onThreadThatEnds(f func()) int {
	tid := make(chan int)
	go func() {
		runtime.LockOSThread() // it ends with this
		if id := unix.Gettid(); id != os.Getpid() {
			f()
			tid <- id
			return
		}
		tid <- onThreadThatEnds(f) // the first one of a process does not
		runtime.UnlockOSThread()
	}()
	return <-tid
}

// A keeper is an orphan once the process of its pager is gone, not when the thread is that made it,
// and also where this process takes orphans in, as a service manager or the init of a container does.
func TestOrphans(t *testing.T) {
	var k *Keeper
	tid := onThreadThatEnds(func() {
		var err error
		if k, err = StartKeeper(); err != nil {
			t.Error(err)
		}
	})
	if k == nil {
		return
	}
	defer func() { _ = k.Close() }()
	for deadline := time.Now().Add(uffdtest.Timeout); unix.Tgkill(os.Getpid(), tid, 0) == nil; {
		if time.Now().After(deadline) {
			t.Fatal("the thread lives on")
		}
	}
	l, err := OpenLeft(k.Pid())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if l.isOrphan() {
		t.Error("the keeper's thread is gone, and its process is said to be")
	}

	v := startVictim(t, setting{child: uffdtest.Options{Pages: 16}}, false)
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	v.killPager()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	taken := &Keeper{pid: v.keeper}
	o, err := OpenLeft(v.keeper)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	if stat, err := proc.ReadStat(v.keeper); err != nil || stat.PPID != os.Getpid() {
		t.Errorf("the orphan was not taken in: its parent is %d, %v", stat.PPID, err)
	}
	if !o.isOrphan() {
		t.Error("this process has taken the keeper in, and is said to be its pager")
	}
	if err := taken.Close(); err != nil {
		t.Error(err)
	}
}

// Of two pagers of one process both keepers hold all that is open here: who takes over from a third
// leaves that of the other alone.
func TestKeeperOfAnotherPagerHere(t *testing.T) {
	a := startVictim(t, setting{child: uffdtest.Options{Pages: 16}}, false)
	a.killPager()
	first := a.newPager(t)
	if err := first.takeFrom(t, a.keeper, Target{Pid: a.Pid, PidFD: -1}); err != nil {
		t.Fatal(err)
	}
	b := startVictim(t, setting{child: uffdtest.Options{Pages: 16}}, false)
	b.killPager()
	b.resume(t)
	b.check(t, b.Thread)
	// Killed it would be no more than a child that nobody has waited for.
	if pid, err := unix.Wait4(first.opts.Keeper.Pid(), nil, unix.WALL|unix.WNOHANG, nil); pid != 0 || err != nil {
		t.Errorf("the keeper of another pager is ended (%v)", err)
		first.opts.Keeper.ended = true
	}
	ctx, cancel := context.WithTimeout(t.Context(), uffdtest.Timeout)
	defer cancel()
	if err := first.ServeAttached(ctx); err != nil {
		t.Fatal(err)
	}
	a.check(t, a.Thread)
}

// A keeper that ends before it is looked into is none.
func TestUserfaultfdsOfTheDead(t *testing.T) {
	cmd := exec.Command("/bin/cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// Start returns in the midst of the exec, which goes on to close what is open here.
	if _, err := in.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	k, err := OpenLeft(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if fds, err := k.Userfaultfds(); len(fds) > 0 || err != nil {
		t.Errorf("Userfaultfds = %v, %v of who has none", fds, err)
	}
	_ = in.Close()
	_ = cmd.Wait()
	if fds, err := k.Userfaultfds(); !errors.Is(err, ErrNoPredecessor) {
		t.Errorf("Userfaultfds = %v, %v; want ErrNoPredecessor", fds, err)
	}
}

// Whoever has the userfaultfds still open when all is resident, and they are closed here: memory is ordinary memory
// then, also what has grown before and after, of children too.
func TestPredecessorLivesOn(t *testing.T) {
	const n = 64
	v := startVictim(t, setting{child: uffdtest.Options{Pages: n}}, false)
	to := v.Start + 1<<30
	v.Mremap(v.Start, n*page.Size, (n+8)*page.Size, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, to).Wait(t)
	child, pid := v.Fork(t)
	pid.Wait(t)
	k, err := OpenLeft(v.keeper)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	list, err := k.Userfaultfds()
	if err != nil || len(list) != 2 {
		t.Fatalf("the keeper has %v, %v", list, err)
	}
	for _, fd := range list {
		own, err := k.Take(fd)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.Close(own) }()
	}
	v.killPager()
	v.resume(t)
	zero(t, v.Thread, to+n*page.Size, 8*page.Size)
	for _, th := range []*uffdtest.Thread{v.Thread, child} {
		v.checkAt(t, th, to, 0, n*page.Size)
		th.Madvise(to, page.Size, unix.MADV_DONTNEED).Wait(t)
		zero(t, th, to, page.Size)
		th.Munmap(to, page.Size).Wait(t)
	}
	const from, old, size = page.Size, (n + 7) * page.Size, (n + 16) * page.Size
	v.Mremap(to+from, old, size, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, to+1<<30).Wait(t)
	zero(t, v.Thread, to+1<<30+old, size-old)
	_, pid = v.Fork(t)
	pid.Wait(t)
}

// The limit is of time in which nothing was done, and it counts as nothing that room is short.
func TestPersist(t *testing.T) {
	const limit = 5 * time.Millisecond
	began, late := time.Now(), errors.New("after the limit")
	err := persist(limit, func() (some, over bool, err error) {
		if time.Since(began) > 4*limit {
			return false, false, late
		}
		return true, false, unix.EMFILE
	})
	if !errors.Is(err, late) {
		t.Errorf("as long as something is done: %v, want to go on", err)
	}
	for _, want := range []error{nil, unix.EMFILE} {
		began := time.Now()
		err := persist(limit, func() (some, over bool, err error) { return false, false, want })
		took := time.Since(began)
		if want == nil {
			want = errUnsure
		}
		if !errors.Is(err, want) || took < limit {
			t.Errorf("nothing is done: %v after %v, want %v and not before %v", err, took, want, limit)
		}
	}
}

// A userfaultfd that was taken from a predecessor, who lives on, is let go of as one of a process that is taken over,
// whenever it is attached: what the predecessor has open waits for nobody.
func TestAttachTaken(t *testing.T) {
	f := newFamily(t, 3, 16)
	attach := func(s *served) {
		other, err := unix.FcntlInt(uintptr(s.FD.Fd()), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(other) })
		u := s.FD
		s.FD = nil
		if err := f.pager.Attach(u, Target{Pid: s.Pid, PidFD: -1, Taken: true}, s.maps); err != nil {
			t.Fatal(err)
		}
	}
	expected := f.children[2]
	if err := f.pager.Expect(expected.Pid, expected.maps); err != nil {
		t.Fatal(err)
	}
	attach(f.children[0])
	f.serve()
	<-f.pager.Serving()
	attach(f.children[1])
	attach(expected)
	f.pager.Gathered()
	f.wait(t)
	for _, s := range f.children {
		s.Madvise(s.Start, page.Size, unix.MADV_DONTNEED).Wait(t)
		s.checkAt(t, s.Thread, s.Addr(1), page.Size, 15*page.Size)
	}
}

// What is still to be told of memory that is made ordinary is read, and no more: nobody waits, and what grew
// or was moved meanwhile is ordinary too.
func TestDisown(t *testing.T) {
	uffdtest.Need(t, "uffd")
	const n = 16
	for name, do := range map[string]func(c *uffdtest.Child, th *uffdtest.Thread) *uffdtest.Reply{
		"unmap": func(c *uffdtest.Child, th *uffdtest.Thread) *uffdtest.Reply { return th.Munmap(c.Addr(8), page.Size) },
		"remove": func(c *uffdtest.Child, th *uffdtest.Thread) *uffdtest.Reply {
			return th.Madvise(c.Addr(8), page.Size, unix.MADV_DONTNEED)
		},
		"move": func(c *uffdtest.Child, th *uffdtest.Thread) *uffdtest.Reply {
			return th.Mremap(c.Addr(8), 8*page.Size, 16*page.Size, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, c.Start+1<<30)
		},
		"fork": func(c *uffdtest.Child, th *uffdtest.Thread) *uffdtest.Reply {
			_, pid := c.Fork(t)
			return pid
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := uffdtest.Start(t, uffdtest.Options{Pages: n, Features: events, Threads: 2})
			other, err := unix.FcntlInt(uintptr(c.FD.Fd()), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = unix.Close(other) }()
			reply := do(c, c.Threads[1])
			uffdtest.WaitMessage(t, c.FD)
			fault := c.Load(c.Addr(2))
			if err := disown(c.FD, c.Pid, &page.Set{}); err != nil {
				t.Fatal(err)
			}
			_ = c.FD.Close()
			reply.Wait(t)
			fault.Wait(t)
			zero(t, c.Thread, c.Start, 8*page.Size)
			if name == "move" {
				zero(t, c.Thread, c.Start+1<<30, 16*page.Size)
				c.Munmap(c.Start+1<<30, 16*page.Size).Wait(t)
			}
			c.Munmap(c.Start, 4*page.Size).Wait(t)
		})
	}
}
