package native

import (
	"errors"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
	"github.com/lazyrestore/lazyrestore/uffd"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// A userfaultfd is served once all is ready for that, however soon it comes, and not
// at all if the process could not be built. What is said first counts.
func TestHandOverBeside(t *testing.T) {
	uffdtest.Need(t, "uffd")
	for _, want := range []error{nil, errNotBuilt} {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(pair[0])
		defer unix.Close(pair[1])
		ready, served, p := false, false, &Process{}
		lazy := page.Range{Start: 1 << 20, End: 2 << 20}
		b := &builder{st: &State{VMAs: []VMA{{Range: lazy, Lazy: []page.Range{lazy}}}}, re: &reopener{opts: &RebuildOptions{
			Serve: func(*Process) (func(), error) {
				if served = true; !ready {
					t.Error("served before all was ready")
				}
				return nil, nil
			},
		}}}
		mayServe := b.handOverBeside(p, pair[0])
		u, err := uffd.Open(uffd.NonBlock)
		if err != nil {
			t.Fatal(err)
		}
		if err := uffd.SendFD(pair[1], u, nil); err != nil {
			t.Fatal(err)
		}
		u.Close()
		_ = unix.Shutdown(pair[1], unix.SHUT_WR)
		for readable := []unix.PollFd{{Fd: int32(pair[0]), Events: unix.POLLIN}}; ; {
			// It has been received when nothing but the end is left to be read.
			n, _, err := unix.Recvfrom(pair[0], make([]byte, 1), unix.MSG_PEEK)
			if err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				break
			}
			unix.Poll(readable, 1)
		}
		ready = true
		mayServe(want)
		mayServe(errors.New("too late"))
		if err := p.wait(); !errors.Is(err, want) {
			t.Errorf("told %v: %v", want, err)
		}
		if served != (want == nil) {
			t.Errorf("told %v: served %v", want, served)
		}
		if p.UFFD == nil {
			t.Fatal("there is no userfaultfd")
		}
		p.UFFD.Close()
	}
}

// Nobody waits for threads of a process that was killed once its first one had stopped.
func TestKilledBeforeItIsBuilt(t *testing.T) {
	uffdtest.Need(t, "ptrace")
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	pid := cmd.Process.Pid
	tr := proc.TracerHere()
	defer tr.Close()
	if _, err := tr.SeizeAll(t.Context(), pid); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, page.Size)
	const base = 1 << 40
	b := &builder{pid: pid, st: &State{Threads: make([]Thread, 2)}, main: new(table), prog: &program{base: base, buf: buf, arena: proc.ArenaOver(base, buf)}}
	other := new(table)
	other.call("never made", unix.SYS_GETPID)
	other.call("nor this", unix.SYS_GETPID)
	b.prog.place(other)
	b.threadTables = []*table{other}
	var exit *proc.ExitError
	if err := b.awaitThreads(tr); !errors.As(err, &exit) {
		t.Errorf("%v, want the process's end", err)
	}
}
