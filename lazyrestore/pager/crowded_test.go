package pager

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// A said tells when the log has said something.
type said struct {
	text string
	once chan struct{}
}

func (s *said) Write(line []byte) (int, error) {
	if strings.Contains(string(line), s.text) {
		select {
		case s.once <- struct{}{}:
		default:
		}
	}
	return len(line), nil
}

// A fork for which there is no descriptor waits, and so does who touches missing memory
// meanwhile, and both go on once there is one.
func TestForkWithoutDescriptors(t *testing.T) {
	log := &said{"a fork waits", make(chan struct{}, 1)}
	s := serveChild(t, setting{
		child:  uffdtest.Options{Pages: 256, Threads: 2},
		writer: image.WriterOptions{ChunkSize: 16 << 10},
		pager:  Options{Background: None, Logger: slog.New(slog.NewTextHandler(log, nil))},
	})
	s.Load(s.Addr(0)).Wait(t) // all that it opens by then is open
	restore := noDescriptors(t)
	defer restore()
	th, pid := s.Fork(t)
	select {
	case <-log.once:
	case <-time.After(uffdtest.Timeout):
		t.Fatal("nothing says that the fork waits")
	}
	other := s.Threads[1].Load(s.Addr(128))
	if pid.Ready(0) {
		t.Error("the fork did not wait")
	}
	restore()
	pid.Wait(t)
	other.Wait(t)
	s.check(t, th)
	s.check(t, s.Thread)
	if err := s.wait(t); err != nil { // all of both is there
		t.Error(err)
	}
}

// noDescriptors has this process have no more descriptors until restore is called.
func noDescriptors(t *testing.T) (restore func()) {
	t.Helper()
	const most = 128 // poll(2) takes no more than that, either
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	var fill []int
	for len(fill) == 0 || fill[len(fill)-1] < most {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fill = append(fill, fd)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: most, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
		for _, fd := range fill {
			_ = unix.Close(fd)
		}
		fill = nil
	}
}
