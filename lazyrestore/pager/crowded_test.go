package pager

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
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

// crowd has s fork when there is no descriptor left for that, and touch missing memory.
func (s *served) crowd(t *testing.T, log *said) (restore func(), th *uffdtest.Thread, pid, touch *uffdtest.Reply) {
	t.Helper()
	restore = s.noDescriptors(t)
	th, pid = s.Fork(t)
	select {
	case <-log.once:
	case <-time.After(uffdtest.Timeout):
		restore()
		t.Fatal("nothing says that the fork waits")
	}
	touch = s.Threads[1].Load(s.Addr(128))
	if pid.Ready(0) {
		t.Error("the fork did not wait")
	}
	return restore, th, pid, touch
}

// serveCrowded is serveChild with two threads, for crowd. The source is remote, and does
// before, unless that is nil.
func serveCrowded(t *testing.T, background Background, before func(ctx context.Context, lane image.Lane) error) (*served, *said) {
	t.Helper()
	log := &said{"the userfaultfd of a forked child", make(chan struct{}, 1)}
	set := setting{
		child:  uffdtest.Options{Pages: 256, Threads: 2},
		writer: image.WriterOptions{Spec: chunk.Spec{Codec: chunk.LZ4}, ChunkSize: 16 << 10},
		pager:  Options{Background: background, Logger: slog.New(slog.NewTextHandler(log, nil))},
	}
	if before != nil {
		var r *remote
		set.source = remoteOf(&r, before)
	}
	s := serveChild(t, set)
	s.Load(s.Addr(0)).Wait(t)
	<-s.pager.Serving()
	s.pager.mu.Lock()
	g := &(*s.pager.session.spaces.Load())[0].guards
	s.pager.mu.Unlock()
	for end := time.Now().Add(uffdtest.Timeout); g.scan.Load() == nil && g.vain.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("guards are not looked for")
		}
	}
	return s, log // with all open that it opens
}

// A fork for which there is no descriptor waits, and so does who touches missing memory
// meanwhile, and both go on once there is one.
func TestForkWithoutDescriptors(t *testing.T) {
	s, log := serveCrowded(t, None, nil)
	restore, th, pid, touch := s.crowd(t, log)
	restore()
	pid.Wait(t)
	touch.Wait(t)
	s.check(t, th)
	s.check(t, s.Thread)
	if err := s.wait(t); err != nil { // all of both is there
		t.Error(err)
	}
}

// The descriptors for children that are gone, or that miss nothing any more, are free for
// the fork that waits.
func TestForkAwaitsDescriptors(t *testing.T) {
	for _, how := range []Background{None, Full} {
		t.Run(how.String(), func(t *testing.T) {
			release := make(chan struct{})
			s, log := serveCrowded(t, how, func(ctx context.Context, lane image.Lane) error {
				if lane == image.Background {
					select {
					case <-release:
					case <-ctx.Done():
					}
				}
				return ctx.Err()
			})
			first, pid := s.Fork(t)
			pid.Wait(t)
			restore, second, pid, touch := s.crowd(t, log)
			defer restore()
			if how == None {
				s.check(t, first) // it is served all the time
			}
			close(release)
			pid.Wait(t)
			touch.Wait(t)
			restore()
			s.check(t, second)
			s.check(t, s.Thread)
			if err := s.wait(t); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("gone", func(t *testing.T) {
		s, log := serveCrowded(t, None, nil)
		first, pid := s.Fork(t)
		pid.Wait(t)
		restore, second, pid, touch := s.crowd(t, log)
		defer restore()
		first.Exit(0)
		pid.Wait(t)
		touch.Wait(t)
		restore()
		s.check(t, second)
	})
}

// A pager ends while a fork waits for a descriptor.
func TestCancelledWithoutDescriptors(t *testing.T) {
	s, log := serveCrowded(t, None, nil)
	restore, _, _, touch := s.crowd(t, log)
	defer restore()
	if touch.Ready(10 * time.Millisecond) { // so that it waits in the pager
		t.Error("missing memory was given while the fork waited")
	}
	s.stop()
	if err := s.wait(t); !errors.Is(err, context.Canceled) {
		t.Errorf("Serve = %v, want the context's error", err)
	}
	restore()
	s.Kill()
	if err := s.pager.Discard(); err != nil || s.pager.attached.fds[0].Fd() >= 0 {
		t.Errorf("what it held is not let go (%v)", err)
	}
}

// Who raised an event is not to be seen without a descriptor: it waits, and what is missing
// of shared memory is not lost over that. Faults are served.
func TestRemoveWithoutDescriptors(t *testing.T) {
	log := &said{"a look at who raised it", make(chan struct{}, 1)}
	s := serveChild(t, setting{
		child: uffdtest.Options{Pages: 64, Kind: uffdtest.Shmem},
		pager: Options{Background: None, Logger: slog.New(slog.NewTextHandler(log, nil))},
	})
	s.Load(s.Addr(0)).Wait(t)
	restore := s.noDescriptors(t)
	defer restore()
	s.Load(s.Addr(40)).Wait(t)
	dropped := s.Madvise(s.Addr(4), 8*page.Size, unix.MADV_DONTNEED)
	select {
	case <-log.once:
	case <-time.After(uffdtest.Timeout):
		t.Error("nothing says that the event waits")
	}
	restore()
	dropped.Wait(t)
	s.check(t, s.Thread)
	if err := s.wait(t); err != nil {
		t.Error(err)
	}
}

// What is lost is not poisoned while the space is crowded: nobody waits for that, and it stays wanted.
func TestLossAwaitsDescriptors(t *testing.T) {
	for name, before := range map[string]bool{"crowded before": true, "crowded meanwhile": false} {
		t.Run(name, func(t *testing.T) {
			se := fakeSession(t, 8, plainSource)
			m := &fakeMemory{
				vmas: []page.Range{page.RangeOf(testBase, 8*page.Size)}, pages: map[page.Addr]byte{}, lost: map[page.Addr]bool{},
			}
			s := fakeSpace(t, se, m)
			m.refuse = func() error {
				s.crowded.Store(true)
				return unix.EAGAIN
			}
			s.crowded.Store(before)
			w := se.newWorker("test")
			defer w.close()
			ctx, cancel := context.WithTimeout(t.Context(), uffdtest.Timeout)
			defer cancel()
			if err := w.lose(ctx, s, 1, errLink); !errors.Is(err, errCrowded) {
				t.Errorf("lose = %v", err)
			}
			if s.left.Load() != 8 {
				t.Errorf("%d pages are wanted, want 8", s.left.Load())
			}
			if err := se.lost.err(); before && err != nil {
				t.Errorf("told as %v", err)
			}
			m.refuse = func() error { return nil }
			s.crowded.Store(false)
			if err := w.lose(ctx, s, 1, errLink); err != nil || s.left.Load() != 4 || len(m.lost) != 4 {
				t.Errorf("later: %v, %d pages are wanted, want 4", err, s.left.Load())
			}
		})
	}
}

// noDescriptors is that of this process, where the pager has nothing open only for a moment: what it closed would be free.
func (s *served) noDescriptors(t *testing.T) (restore func()) {
	t.Helper()
	s.pager.mu.Lock()
	resting := &s.pager.session.resting
	s.pager.mu.Unlock()
	until(t, "the reader does not come to rest", resting.Load)
	return noDescriptors(t)
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
