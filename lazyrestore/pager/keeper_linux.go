package pager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// entered says whether the keeper that was there before Go began has been given
// to somebody.
var entered atomic.Bool

// A Keeper is a child that shares this process's table of file descriptors
// and does nothing but hold it. If this process is killed, every uffd is still
// open in the keeper, also one that a fork event brought a moment before:
// threads that touch missing pages wait instead of reading zeros, and a
// successor can take the descriptors with pidfd_getfd(2).
//
// The keeper is a few instructions of its own (keeper_linux_amd64.s) and has
// no memory but those and one page: starting one costs a copy of this
// process's page tables, so it is quickest while the heap is small, and quickest of all
// where the executable is linked with -E and the name of function enter: with "restore" as its
// first argument it then has a keeper before Go begins. It is in a
// session of its own and blocks all signals. When this process is gone it
// closes the standard descriptors, unless they are of memory, and it ends once no process lives that has
// a uffd here and nothing is unread (KeepUnread). Descriptors that this process opens later are held too.
type Keeper struct {
	pid   int
	page  []byte // shared with it; nil if it was there before Go began
	ended bool
}

// keeperName is what ps(1) shows of a keeper, and what it is known by, from the moment on in which it is made; the kernel allows
// 15 bytes.
const keeperName = "lazyrest-keeper"

// A keeper's page, with the offsets that its code has.
const (
	keeperParent  = 0   // the pager's id
	keeperSignals = 8   // sigset: what tells that a thread of it has ended; from 16 on the code's own: how long it waits
	keeperProbe   = 32  // struct uffdio_writeprotect: of a page that nobody has
	keeperSocket  = 56  // struct pollfd, see KeepUnread
	keeperComm    = 64  // its name
	keeperHoles   = 80  // ranges to unmap: start and length
	keeperUnread  = 160 // how much is unread, 32 bits, and the last word of KeepUnread
	holes         = 4
	// tlsBelow and tlsAbove bound where glibc has its rseq area: up to 2.40
	// after the thread pointer, then before it.
	tlsBelow = 64 << 10
	tlsAbove = 2 * page.Size
	// userEnd is where user memory ends: with 5-level page tables too unless
	// asked for, and we do not.
	userEnd page.Addr = 0x7ffffffff000
	// maxKept bounds how many descriptors a keeper looks at.
	maxKept = 1 << 16
)

// StartKeeper starts a keeper. Its descriptors are those of this process, so
// one is enough for all that this process serves.
func StartKeeper() (k *Keeper, err error) {
	if k := takeEntered(); k != nil {
		return k, nil
	}
	b, err := unix.Mmap(-1, 0, page.Size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("start the keeper: %w", os.NewSyscallError("mmap", err))
	}
	defer func() {
		if k == nil {
			_ = unix.Munmap(b)
		}
	}()
	order64.PutUint64(b[keeperParent:], uint64(os.Getpid()))
	order64.PutUint64(b[keeperSignals:], 1<<(unix.SIGUSR1-1))
	order64.PutUint64(b[keeperProbe:], probeAddr)
	order64.PutUint64(b[keeperProbe+8:], page.Size)
	order64.PutUint64(b[keeperSocket:], unix.POLLIN<<32|noSocket)
	copy(b[keeperComm:], keeperName)
	for i, hole := range keeperHolesOf(b) {
		order64.PutUint64(b[keeperHoles+16*i:], uint64(hole.Start))
		order64.PutUint64(b[keeperHoles+16*i+8:], hole.Len())
	}

	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, old unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^uint64(0)
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &old); err != nil {
		return nil, fmt.Errorf("start the keeper: %w", os.NewSyscallError("rt_sigprocmask", err))
	}
	pid := int(cloneKeeper(addressOf(b), maxKept))
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil); err != nil {
		return nil, fmt.Errorf("start the keeper: %w", os.NewSyscallError("rt_sigprocmask", err))
	}
	if pid < 0 {
		return nil, fmt.Errorf("start the keeper: %w", os.NewSyscallError("clone", unix.Errno(-pid)))
	}
	return &Keeper{pid: pid, page: b}, nil
}

// noSocket is that KeepUnread has the keeper look at none.
const noSocket = 1<<32 - 1

// KeepUnread has the keeper live on after this process as long as there is something at a unix socket that nobody has taken,
// for userfaultfds may be among it: words that were sent, or, if it listens, a connection. No process may live any more
// whose userfaultfds those are, which it cannot see. A word of 32 bits that comes alone does not count if it is last, with
// which all has been sent. It looks at one socket at a time; -1: at none. A keeper that was there before Go began looks at none.
func (k *Keeper) KeepUnread(socket int, last uint32) {
	if k.page != nil {
		atomic.StoreUint64(word(k.page, keeperUnread), uint64(last)<<32)
		atomic.StoreUint64(word(k.page, keeperSocket), unix.POLLIN<<32|uint64(uint32(int32(socket))))
	}
}

// Unread reports whether there is something at a unix socket that nobody has taken, see KeepUnread.
func Unread(socket int) bool {
	if n, err := unix.IoctlGetInt(socket, unix.SIOCINQ); !errors.Is(err, unix.EINVAL) {
		return n > 0
	}
	// It listens. One that is shut down may have a connection, or has had it taken this moment.
	n, _ := unix.Poll([]unix.PollFd{{Fd: int32(socket), Events: unix.POLLIN}}, 0)
	return n > 0
}

// haveKeeper starts a keeper if there is none.
func (p *Pager) haveKeeper() error {
	if p.opts.Keeper != nil {
		return nil
	}
	k, err := StartKeeper()
	if err == nil {
		p.opts.Keeper = k
	}
	return err
}

// DropKeeper ends the keeper that was there before Go began, if it is still there and
// nobody has it: for whoever serves nothing.
func DropKeeper() error {
	if k := takeEntered(); k != nil {
		return k.Close()
	}
	return nil
}

// KeeperIsThere reports whether StartKeeper has a keeper to give that was there before Go
// began, and so will copy nothing.
func KeeperIsThere() bool { return enteredKeeper() > 0 && !entered.Load() }

// takeEntered is the keeper that was there before Go began, for the first who asks.
func takeEntered() *Keeper {
	pid := enteredKeeper()
	if pid <= 0 || entered.Swap(true) {
		return nil
	}
	if ended, err := unix.Wait4(pid, nil, unix.WNOHANG|unix.WALL, nil); ended != 0 || err != nil {
		return nil
	}
	return &Keeper{pid: pid}
}

// keeperHolesOf is all memory but the keeper's code, its page b, and what
// surrounds the thread pointer: a C library may have registered an area there
// (rseq(2)) that the kernel writes on every return to the thread, and ends it
// if that fails.
func keeperHolesOf(b []byte) [holes]page.Range {
	start, end := keeperCode()
	keep := page.SetOf(
		page.Range{Start: page.Addr(start).Down(), End: page.Addr(end).Up()},
		page.RangeOf(page.Addr(addressOf(b)), page.Size),
	)
	if tp := threadPointer(); tp != 0 {
		keep.Add(page.Range{Start: max(tp, tlsBelow).Down() - tlsBelow, End: tp.Up() + tlsAbove})
	}
	var list [holes]page.Range
	at, i := page.Addr(0), 0
	for r := range keep.All() {
		list[i] = page.Range{Start: at, End: r.Start}
		at, i = r.End, i+1
	}
	list[i] = page.Range{Start: at, End: userEnd}
	return list
}

// keeperPatience is how long it is waited for a keeper to run for the first time.
const keeperPatience = 30 * time.Second

// awaitRun waits until the keeper has run for the first time, and so has a session of its own: by then what ends the
// process group of this process, or its terminal, would end both.
func (k *Keeper) awaitRun(ctx context.Context) error {
	for deadline := time.Now().Add(keeperPatience); ; nap(gatePause) {
		stat, err := proc.ReadStat(k.pid)
		switch {
		case err != nil:
			return fmt.Errorf("wait for the keeper: %w", err)
		case stat.State == 'Z':
			return errors.New("wait for the keeper: it has ended")
		case stat.Session == k.pid:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("wait for the keeper: %w", context.Cause(ctx))
		case time.Now().After(deadline):
			return fmt.Errorf("wait for the keeper: process %d has not run for %v", k.pid, keeperPatience)
		}
	}
}

// Pid is the keeper's process id.
func (k *Keeper) Pid() int { return k.pid }

// Began is when it was made, in clock ticks since boot: with its id it tells the keeper from all processes of this boot and pid
// namespace.
func (k *Keeper) Began() (uint64, error) { return began(k.pid) }

func began(pid int) (uint64, error) {
	stat, err := proc.ReadStat(pid)
	if err != nil {
		return 0, fmt.Errorf("pager: look when keeper %d began: %w", pid, err)
	}
	return stat.StartTime, nil
}

// Close ends the keeper and waits until it has ended. The descriptors stay
// open here. A second call does nothing.
func (k *Keeper) Close() error {
	if k.ended {
		return nil
	}
	if err := unix.Kill(k.pid, unix.SIGKILL); err != nil {
		return fmt.Errorf("end the keeper: %w", os.NewSyscallError("kill", err))
	}
	for {
		// It sends no SIGCHLD, so only __WALL waits for it.
		_, err := unix.Wait4(k.pid, nil, unix.WALL, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("end the keeper: %w", os.NewSyscallError("wait4", err))
		}
		k.ended = true
		if k.page != nil {
			_ = unix.Munmap(k.page)
			k.page = nil
		}
		return nil
	}
}
