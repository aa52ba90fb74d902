package uffdtest

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/uffd"
)

// Timeout is how long the helpers here wait for anything before they fail the
// test.
const Timeout = 30 * time.Second

const hugePageSize = 2 << 20

// Kind is a kind of memory.
type Kind int

// The kinds of memory.
const (
	Anonymous     Kind = iota // private, anonymous
	Shmem                     // a shared mapping of a memfd, whose descriptor is closed
	Hugetlb                   // private huge pages of 2 MiB
	HugetlbShared             // shared huge pages of 2 MiB
)

// Options says what child Start makes. The zero value is one thread with 16
// pages of anonymous memory registered for missing faults.
type Options struct {
	Pages        int           // how many pages to map; 16 if zero
	Kind         Kind          // of what kind
	Features     uffd.Features // what the child enables
	Mode         uffd.Mode     // what it registers for; ModeMissing if zero
	Open         uffd.OpenFlag // added to CloseOnExec and NonBlock
	Blocking     bool          // without NonBlock
	Unregistered bool          // map, but do not register
	KeepFD       bool          // the child keeps a reference to its userfaultfd
	Threads      int           // how many threads obey; 1 if zero
	Forks        int           // how many forks there may be in all; 4 if zero
}

// withDefaults fills in what is zero.
func (o Options) withDefaults() Options {
	set := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	set(&o.Pages, 16)
	set(&o.Threads, 1)
	set(&o.Forks, 4)
	if o.Mode == 0 {
		o.Mode = uffd.ModeMissing
	}
	o.Open |= uffd.CloseOnExec
	if !o.Blocking {
		o.Open |= uffd.NonBlock
	}
	return o
}

func (o *Options) pageSize() uint64 {
	if o.Kind == Hugetlb || o.Kind == HugetlbShared {
		return hugePageSize
	}
	return uint64(os.Getpagesize())
}

func (o *Options) length() uint64 { return uint64(o.Pages) * o.pageSize() }

// Child is a process with missing pages. The commands of its first thread are
// its own.
type Child struct {
	*Thread
	// Threads are all its threads; the first is the embedded one.
	Threads []*Thread
	Pid     int
	// FD is the child's userfaultfd, received from it. The test may close it;
	// else the end of the test does.
	FD *uffd.FD
	// Start and Length are the memory, in the child's addresses.
	Start, Length uint64
	PageSize      int

	cmd    *exec.Cmd
	spares []spare // sockets for processes that are still to be forked
	forked []*Reply
}

// spare is a socket for one forked process: our end, and the number of the
// other one in the child.
type spare struct {
	sock   int
	number uint64
}

// Start starts a child, which is killed when the test ends. The TestMain of
// the package has to call Main or BeChild.
func Start(t testing.TB, o Options) *Child {
	t.Helper()
	c, err := start(t, o.withDefaults())
	if err != nil {
		t.Fatalf("start a child with missing pages: %v", err)
	}
	return c
}

func start(t testing.TB, o Options) (*Child, error) {
	ours, theirs, err := socketPairs(1 + o.Threads + o.Forks)
	t.Cleanup(func() {
		for _, fd := range ours {
			_ = unix.Close(fd)
		}
	})
	defer func() {
		for _, f := range theirs {
			_ = f.Close()
		}
	}()
	if err != nil {
		return nil, err
	}
	c := &Child{Length: o.length(), PageSize: int(o.pageSize())}
	if err := c.run(o, theirs); err != nil {
		return nil, err
	}
	t.Cleanup(c.stop)
	for _, sock := range ours[1 : 1+o.Threads] {
		c.Threads = append(c.Threads, &Thread{sock: sock})
	}
	c.Thread = c.Threads[0]
	for i, sock := range ours[1+o.Threads:] {
		c.spares = append(c.spares, spare{sock, uint64(threadFD + o.Threads + i)})
	}
	for _, f := range theirs {
		_ = f.Close() // or the child's end would not be seen
	}
	return c, c.greet(ours[0])
}

// socketPairs makes n pairs of sockets: our ends, and those for the child. It
// returns what it has made also with an error.
func socketPairs(n int) (ours []int, theirs []*os.File, err error) {
	for range n {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return ours, theirs, fmt.Errorf("make a socket pair: %w", err)
		}
		ours = append(ours, pair[0])
		theirs = append(theirs, os.NewFile(uintptr(pair[1]), "uffdtest"))
	}
	return ours, theirs, nil
}

// run starts the process itself.
func (c *Child) run(o Options, files []*os.File) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	config, err := json.Marshal(o)
	if err != nil {
		return err
	}
	c.cmd = exec.Command(exe, "-test.run=^$")
	c.cmd.Env = append(os.Environ(), childEnv+"="+string(config))
	c.cmd.Stdout, c.cmd.Stderr = os.Stderr, os.Stderr
	c.cmd.ExtraFiles = files
	if err := c.cmd.Start(); err != nil {
		return err
	}
	c.Pid = c.cmd.Process.Pid
	return nil
}

// greet receives the userfaultfd and the address of the memory.
func (c *Child) greet(control int) error {
	if err := waitReadable(control, Timeout); err != nil {
		return fmt.Errorf("wait for the child's userfaultfd: %w", err)
	}
	buf := make([]byte, 4096)
	f, n, recvErr := uffd.ReceiveFD(control, buf)
	var h hello
	err := json.Unmarshal(buf[:n], &h)
	switch {
	case recvErr == nil && err == nil:
		c.FD, c.Start = f, h.Start
		return nil
	case h.Err != "":
		return errors.New(h.Err)
	}
	return fmt.Errorf("receive the child's userfaultfd (does TestMain call uffdtest.Main?): %w", errors.Join(recvErr, err))
}

// stop ends the child and what it forked. The forked processes first: as long
// as their parent lives, their ids are nobody else's.
func (c *Child) stop() {
	for _, r := range c.forked {
		if pid, err := r.result(0); err == nil && pid > 1 {
			killAndWait(int(pid))
		}
	}
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
	if c.FD != nil {
		_ = c.FD.Close()
	}
}

// killAndWait ends a process that is not our child.
func killAndWait(pid int) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer func() { _ = unix.Close(pidfd) }()
	_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
	_ = waitReadable(pidfd, Timeout)
}

// Addr is the address of a page, counted from zero.
func (c *Child) Addr(page int) uint64 { return c.Start + uint64(page)*uint64(c.PageSize) }

// Kill ends the child with SIGKILL and waits until it is gone.
func (c *Child) Kill() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

// WaitExit waits until the child has ended by itself, and gives its status.
func (c *Child) WaitExit(t testing.TB) *os.ProcessState {
	t.Helper()
	watchdog := time.AfterFunc(Timeout, func() { _ = c.cmd.Process.Kill() })
	defer watchdog.Stop()
	_ = c.cmd.Wait()
	return c.cmd.ProcessState
}

// Fork has the child fork. The reply is the new process's id; with
// FeatureEventFork it does not come before the event is read. The thread is
// the new process's only one, whose requests may be made at once.
func (c *Child) Fork(t testing.TB) (*Thread, *Reply) {
	t.Helper()
	if len(c.spares) == 0 {
		t.Fatal("uffdtest: more forks than Options.Forks")
	}
	next := c.spares[0]
	c.spares = c.spares[1:]
	r := c.request(opFork, next.number)
	c.forked = append(c.forked, r)
	return &Thread{sock: next.sock}, r
}

// Main is for TestMain: it becomes the child of Start if this process is one,
// and else runs the tests and exits. Examples, which cannot be skipped one by
// one, are left out where there is no userfaultfd, unless RequireEnv lists
// "uffd".
func Main(m *testing.M) {
	BeChild()
	flag.Parse()
	if facilities["uffd"]() != nil && !Required("uffd") {
		skip := flag.Lookup("test.skip")
		pattern := "^Example"
		if old := skip.Value.String(); old != "" {
			pattern = old + "|" + pattern
		}
		if err := skip.Value.Set(pattern); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
	}
	os.Exit(m.Run())
}

// Readable waits for at most the time within until a read of fd would find
// something, or until the process ends whose pidfd it is.
func Readable(fd int, within time.Duration) bool {
	for deadline := time.Now().Add(within); ; {
		left := max(time.Until(deadline), 0)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if !errors.Is(err, unix.EINTR) {
			return n > 0
		}
	}
}
