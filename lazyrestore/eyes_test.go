package lazyrestore_test

import (
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore"
)

// Whoever reads /proc/PID/cmdline or environ while the process builds itself, as ps
// and the watchers of a machine do, leaves its arguments as they are.
func TestReadersOfArguments(t *testing.T) {
	t.Parallel()
	for _, stack := range []string{"anywhere", "fixed"} {
		t.Run(stack, func(t *testing.T) {
			s := launch(t, startWith{scene: "arguments", args: []string{stack, strings.Repeat("x", 50000)}, env: []string{"LONG=" + strings.Repeat("y", 50000)}})
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
