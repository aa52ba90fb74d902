package pager

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// traceTo has the thread tid run, traced by the calling thread, until do has it make the system call nr, and stops
// it when that has been made and not returned yet, as strace does.
func traceTo(t *testing.T, tid int, nr uint64, do func()) {
	t.Helper()
	await := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		var st unix.WaitStatus
		if _, err := unix.Wait4(tid, &st, unix.WALL, nil); err != nil || !st.Stopped() {
			t.Fatalf("the thread does not stop: %#x, %v", int(st), err)
		}
	}
	if err := unix.PtraceSeize(tid); err != nil {
		t.Fatal(err)
	}
	await(unix.PtraceInterrupt(tid))
	do()
	for stops := 0; stops < 2; {
		await(unix.PtraceSyscall(tid, 0))
		var regs unix.PtraceRegs
		if err := unix.PtraceGetRegs(tid, &regs); err != nil {
			t.Fatal(err)
		}
		if regs.Orig_rax == nr {
			stops++
		}
	}
}

// A thread that is traced stands still at the end of an munmap that was told, and still shows it, while
// another moves memory to that place, unmaps it, and moves other memory there which grows: what has grown is zero.
func TestMovesBesideTracedThread(t *testing.T) {
	uffdtest.Need(t, "ptrace")
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const n, to = 8, unix.MREMAP_MAYMOVE | unix.MREMAP_FIXED
	s := serveChild(t, setting{child: uffdtest.Options{Pages: 64, Threads: 2}, pager: Options{Background: None}})
	traced, other, left := s.Threads[1], s.Thread, s.Addr(8)
	tid := int(traced.Syscall(unix.SYS_GETTID).Wait(t))
	var unmapped *uffdtest.Reply
	detach := sync.OnceFunc(func() { _ = unix.PtraceDetach(tid) })
	defer detach() // or it is not ended
	traceTo(t, tid, unix.SYS_MUNMAP, func() { unmapped = traced.Munmap(left, 2*n*page.Size) })
	if call, err := readLine(fmt.Sprintf("/proc/%d/task/%d/syscall", s.Pid, tid)); err != nil || unmapped.Ready(0) {
		t.Fatalf("the thread is in %q, %v", call, err)
	} else if c, asleep := parseCall(call); !asleep || c.nr != unix.SYS_MUNMAP {
		t.Fatalf("the thread is in %q", call)
	}
	other.Mremap(s.Addr(32), 2*n*page.Size, 2*n*page.Size, to, left).Wait(t)
	other.Munmap(left, 2*n*page.Size).Wait(t)
	other.Mremap(s.Addr(48), n*page.Size, 2*n*page.Size, to, left).Wait(t)
	s.checkAt(t, other, left, 48*page.Size, n*page.Size)
	zero(t, other, left+n*page.Size, n*page.Size)
	detach()
	unmapped.Wait(t)
	s.checkAt(t, traced, s.Start, 0, 8*page.Size)
	s.checkAt(t, traced, s.Addr(24), 24*page.Size, 8*page.Size)
	s.checkAt(t, traced, s.Addr(56), 56*page.Size, 8*page.Size)
}

// A look that was refused is not asked for again.
func TestRefusedLookIsRemembered(t *testing.T) {
	uffdtest.Need(t, "uffd", "ptrace")
	c := uffdtest.Start(t, uffdtest.Options{Pages: 4, Features: events})
	w := &world{}
	m := w.add(c.FD.Fd(), c.Pid, layout{})
	j, err := newJournal(w)
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	r := &reader{worker: worker{session: &session{}}, ctx: t.Context(), world: w, journal: j}
	r.spaces.Store(new([]*space))
	s := &space{model: m, u: c.FD}
	unmapped := c.Munmap(c.Start, page.Size)
	uffdtest.WaitMessage(t, c.FD) // a look is made as long as something is to be told
	look := func() byte {
		t.Helper()
		if err := r.lookAround(s); err != nil {
			t.Fatal(err)
		}
		return slotOf(&j.log[j.pos-1])[0]
	}
	if got := look(); got != slotSure || s.hidden {
		t.Errorf("a look that can be had ends with %#x, hidden %v", got, s.hidden)
	}
	restore := withoutPtrace(t)
	got := look()
	restore()
	if got != slotUnsure || !s.hidden {
		t.Errorf("a look that is refused ends with %#x, hidden %v", got, s.hidden)
	}
	if got := look(); got != slotUnsure {
		t.Errorf("after one that was refused a look ends with %#x", got)
	}
	_ = c.FD.Close()
	unmapped.Wait(t)
}

// withoutPtrace takes CAP_SYS_PTRACE from the calling thread until restore is called.
func withoutPtrace(t *testing.T) (restore func()) {
	t.Helper()
	runtime.LockOSThread()
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var had [2]unix.CapUserData
	if err := unix.Capget(&hdr, &had[0]); err != nil {
		t.Fatal(err)
	}
	set := func(data [2]unix.CapUserData) {
		if err := unix.Capset(&hdr, &data[0]); err != nil {
			t.Error(err)
		}
	}
	less := had
	less[0].Effective &^= 1 << unix.CAP_SYS_PTRACE
	set(less)
	return func() {
		set(had)
		runtime.UnlockOSThread()
	}
}

// Where looks have waited too much of late, the next ends at once.
func TestLooksHaveABudget(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(2, runtime.GOMAXPROCS(0)))) // it computes while we look
	var stop atomic.Bool
	defer stop.Store(true)
	computes := make(chan bool)
	go func() {
		runtime.LockOSThread()
		close(computes)
		for !stop.Load() { //nolint:revive // it is never asleep
		}
	}()
	<-computes
	need := func() bool { return true }
	var p patience
	// Now and then the runtime has it sleep.
	look := func(fresh patience, seen func(err error) bool) bool {
		for range 100 {
			p = fresh
			if _, err := lookAt(t.Context(), os.Getpid(), nil, &p, need); seen(err) {
				return true
			}
		}
		return false
	}
	if !look(patience{spent: 2 * maxLooks, last: time.Now()}, func(err error) bool { return errors.Is(err, errUnsure) }) {
		t.Error("looks without a budget wait")
	}
	if !look(patience{}, func(err error) bool { return err == nil && p.spent > 0 }) || p.spent > 2*lookTime {
		t.Errorf("a look has waited for %v", p.spent)
	}
	if l, err := lookAt(t.Context(), os.Getpid(), nil, &p, func() bool { return false }); len(l.calls) > 0 || err != nil {
		t.Errorf("a look that is not needed finds %v, %v", l.calls, err)
	}
}

// A thread is busy once its run time has moved often enough and far enough, no sooner.
func TestRunTimeLimits(t *testing.T) {
	const tick = 4 * time.Millisecond
	for _, c := range []struct {
		name   string
		counts bool
		times  []time.Duration // after the first
		busy   int             // the first of them at which it is
	}{
		{name: "computes", counts: true, times: []time.Duration{50e3, 90e3, 120e3}, busy: 2},
		{name: "stands still", counts: true, times: []time.Duration{0, 0, 0, 0}, busy: -1},
		{name: "steps that are short", counts: true, times: []time.Duration{10e3, 20e3, 30e3, 100e3, 101e3}, busy: 4},
		{name: "few steps", counts: true, times: []time.Duration{500e3, 900e3, 900e3, 901e3}, busy: 3},
		{name: "ticks", times: []time.Duration{0, tick, tick, 2 * tick}, busy: 3},
		{name: "one tick", times: []time.Duration{tick, tick, tick}, busy: -1},
		{name: "ticks that are short", times: []time.Duration{tick, tick + 1e6, tick + 2e6}, busy: 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &runTime{counter: -1, schedstat: filepath.Join(t.TempDir(), "schedstat")}
			set := func(d time.Duration) error {
				return os.WriteFile(r.schedstat, fmt.Appendf(nil, "%d 7 1\n", d), 0o600)
			}
			if c.counts {
				var fds [2]int
				if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
					t.Fatal(err)
				}
				defer func() { _ = unix.Close(fds[1]) }()
				r.counter = fds[0]
				set = func(d time.Duration) error {
					_, err := unix.Write(fds[1], binary.NativeEndian.AppendUint64(nil, uint64(d)))
					return err
				}
			}
			defer r.close()
			const start = time.Second
			r.first, r.last = start, start
			for i, d := range c.times {
				if err := set(start + d); err != nil {
					t.Fatal(err)
				}
				busy, err := r.isBusy()
				if err != nil {
					t.Fatal(err)
				}
				if want := c.busy >= 0 && i >= c.busy; busy != want {
					t.Errorf("after %v it is busy: %v", d, busy)
				}
			}
		})
	}
}
