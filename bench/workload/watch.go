package workload

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A Watch tells when a program has printed something. Unlike who looks at the file
// now and then it takes no processor until then: Go's runtime has a thread that wakes
// each 100 us for as long as something is looked at, on a processor that may be wanted
// by what is measured.
type Watch struct {
	f       *os.File
	changed chan struct{}
}

// Watch watches the output of the program, as it is from now on.
func (p *Process) Watch() (*Watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	w := &Watch{os.NewFile(uintptr(fd), "inotify"), make(chan struct{}, 1)}
	path := filepath.Join(p.Dir, "stdout")
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_MODIFY); err != nil {
		w.f.Close()
		return nil, fmt.Errorf("watch %s: %w", path, err)
	}
	go w.run()
	return w, nil
}

// run ends when the watch is closed.
func (w *Watch) run() {
	events := make([]byte, 4096)
	for {
		if _, err := w.f.Read(events); err != nil {
			return
		}
		select {
		case w.changed <- struct{}{}:
		default:
		}
	}
}

// Changed has a token once something was printed since it was last taken.
func (w *Watch) Changed() <-chan struct{} { return w.changed }

// Close ends it.
func (w *Watch) Close() { w.f.Close() }
