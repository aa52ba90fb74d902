package lazyrestore_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore"
	"github.com/lazyrestore/lazyrestore/lazyrestore/native"
)

// Whoever reads /proc/PID/cmdline or environ while the process builds itself, as ps
// and the watchers of a machine do, leaves its arguments as they are.
func TestReadersOfArguments(t *testing.T) {
	t.Parallel()
	for _, stack := range []string{"anywhere", "fixed"} {
		t.Run(stack, func(t *testing.T) {
			s := launch(t, startWith{scene: "arguments", args: []string{stack, strings.Repeat("x", 100000)}, env: []string{"LONG=" + strings.Repeat("y", 100000)}})
			s.ready(1)
			defer readAllTheTime(s.pid, "cmdline", "environ")()
			for range 5 {
				s.cycle(lazyrestore.CheckpointOptions{}, lazily)
			}
			s.release()
			s.well()
		})
	}
}

// Who looks at a process that misses nearly all of its memory sees its arguments and its environment.
func TestArgumentsAreShown(t *testing.T) {
	t.Parallel()
	s := launch(t, startWith{scene: "look", args: []string{"8", "shown", strings.Repeat("x", 10000)}, env: []string{"SHOWN=" + strings.Repeat("y", 10000)}})
	s.ready(1)
	text := func(name string) string { return string(must(os.ReadFile(fmt.Sprintf("/proc/%d/%s", s.pid, name)))(t)) }
	arguments, environment := text("cmdline"), text("environ")
	s.cycle(plainest, lazily)
	if got := text("cmdline"); got != arguments {
		t.Errorf("%d bytes of arguments, want %d", len(got), len(arguments))
	}
	if got := text("environ"); got != environment {
		t.Errorf("%d bytes of environment, want %d", len(got), len(environment))
	}
	s.release()
	s.well()
}

// Whoever reads its memory meanwhile, as root may, makes no zeros that the process
// reads: the restore says so, and leaves nothing.
func TestReadersOfMemory(t *testing.T) {
	t.Parallel()
	s := launch(t, startWith{scene: "forever", args: []string{"8"}})
	at := must(strconv.ParseUint(s.says(`(?m)^memory (0x[0-9a-f]+) `)[1], 0, 64))(t)
	s.ready(1)
	s.checkpoint(plainest)
	done, busy := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(busy)
		// Ahead of all others, and often: else it seldom gets a processor meanwhile.
		runtime.LockOSThread() // and ends with the goroutine
		if err := unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0); err != nil {
			t.Error(err)
		}
		for {
			select {
			case <-done:
				return
			default:
			}
			var b [1]byte
			remote := []unix.RemoteIovec{{Base: uintptr(at), Len: 1}}
			_, _ = unix.ProcessVMReadv(s.pid, []unix.Iovec{{Base: &b[0], Len: 1}}, remote, 0)
			_ = unix.Nanosleep(&unix.Timespec{Nsec: 1000}, nil)
		}
	}()
	err := s.tryRestore(lazily)
	close(done)
	<-busy
	if err != nil {
		if !errors.Is(err, native.ErrTouched) {
			t.Fatal(err)
		}
		s.restore(lazily)
	}
	s.release()
	s.release()
	s.well()
}

// readAllTheTime reads files of /proc/PID, whether there is such a process or not.
func readAllTheTime(pid int, names ...string) (end func()) {
	var readers sync.WaitGroup
	done := make(chan struct{})
	for _, name := range names {
		path := filepath.Join("/proc", strconv.Itoa(pid), name)
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if f, err := os.Open(path); err == nil {
					_, _ = io.Copy(io.Discard, f)
					f.Close()
				}
			}
		})
	}
	return func() {
		close(done)
		readers.Wait()
	}
}
