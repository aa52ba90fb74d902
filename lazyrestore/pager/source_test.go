package pager

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// A remote is a source that is not in memory, and does what a test says
// before it reads pages.
type remote struct {
	image.Source
	pages  string // the pages object
	before func(ctx context.Context, lane image.Lane) error

	mu    sync.Mutex
	reads map[int64]int // guarded by mu: of the pages object, by offset
}

func (r *remote) ReadRange(ctx context.Context, object string, p []byte, off int64, lane image.Lane) error {
	if object == r.pages {
		r.mu.Lock()
		r.reads[off]++
		r.mu.Unlock()
		if err := r.before(ctx, lane); err != nil {
			return err
		}
	}
	return r.Source.ReadRange(ctx, object, p, off, lane)
}

// remoteOf makes a setting's source.
func remoteOf(r **remote, before func(ctx context.Context, lane image.Lane) error) func(*imagetest.Mem) image.Source {
	return func(m *imagetest.Mem) image.Source {
		*r = &remote{Source: m, pages: "pages.lz4", before: before, reads: map[int64]int{}}
		return *r
	}
}

var errLink = errors.New("the link is down")

// Threads that wait for one chunk share one fetch.
func TestSingleFlight(t *testing.T) {
	release := make(chan struct{})
	waiting := make(chan struct{}, 100)
	var r *remote
	const threads = 8
	s := serveChild(t, setting{
		child: uffdtest.Options{Pages: 16, Threads: threads},
		pager: Options{Background: None},
		source: remoteOf(&r, func(ctx context.Context, _ image.Lane) error {
			waiting <- struct{}{}
			select {
			case <-release:
			case <-ctx.Done():
			}
			return ctx.Err()
		}),
	})
	var replies []*uffdtest.Reply
	for i, th := range s.Threads {
		replies = append(replies, th.Load(s.Addr(i)))
	}
	<-waiting
	deadline := time.Now().Add(uffdtest.Timeout)
	for s.pager.Stats().Faults < threads && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond) // no event tells that the last thread has faulted
	}
	close(release)
	for i, reply := range replies {
		if got, want := reply.Wait(t), uint64(s.want[i*page.Size]); got != want {
			t.Errorf("page %d begins with %d, want %d", i, got, want)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for off, n := range r.reads {
		if n != 1 {
			t.Errorf("the frame at %d was read %d times", off, n)
		}
	}
}

// A fault is served while every background read hangs.
func TestDemandPassesBackground(t *testing.T) {
	var r *remote
	s := serveChild(t, setting{
		child: uffdtest.Options{Pages: 512},
		source: remoteOf(&r, func(ctx context.Context, lane image.Lane) error {
			if lane == image.Background {
				<-ctx.Done()
			}
			return ctx.Err()
		}),
	})
	s.check(t, s.Thread)
	if err := s.wait(t); err != nil {
		t.Error(err)
	}
}

// A link that comes back is all right.
func TestSourceComesBack(t *testing.T) {
	var r *remote
	var mu sync.Mutex
	failures := 3
	s := serveChild(t, setting{
		child: uffdtest.Options{Pages: 64},
		source: remoteOf(&r, func(context.Context, image.Lane) error {
			mu.Lock()
			defer mu.Unlock()
			if failures--; failures >= 0 {
				return errLink
			}
			return nil
		}),
	})
	s.check(t, s.Thread)
	if err := s.wait(t); err != nil {
		t.Error(err)
	}
}

// What cannot be had is poisoned: the thread gets SIGBUS, never zeros.
func TestLostSourcePoisons(t *testing.T) {
	for _, bg := range []Background{None, Full} {
		t.Run(bg.String(), func(t *testing.T) {
			uffdtest.Need(t, "POISON")
			var r *remote
			s := serveChild(t, setting{
				child:  uffdtest.Options{Pages: 64},
				pager:  Options{Background: bg, OnLost: Poison, Retry: 20 * time.Millisecond},
				source: remoteOf(&r, func(context.Context, image.Lane) error { return errLink }),
			})
			got := make([]byte, page.Size)
			local := []unix.Iovec{{Base: &got[0], Len: page.Size}}
			from := []unix.RemoteIovec{{Base: uintptr(s.Addr(9)), Len: page.Size}}
			if n, err := unix.ProcessVMReadv(s.Pid, local, from, 0); err == nil {
				t.Errorf("process_vm_readv read %d bytes of a page that cannot be had", n)
			}
			if _, err := s.Load(s.Addr(9)).Result(); !uffdtest.Gone(err) {
				t.Errorf("the thread that touched it: %v, want its end by SIGBUS", err)
			}
			err := s.wait(t)
			var lost *LostError
			if !errors.As(err, &lost) || !errors.Is(err, errLink) || lost.Total == 0 {
				t.Errorf("Serve = %v, want a LostError with the reason", err)
			}
		})
	}
}

// A damaged frame is not installed; its neighbours are, and the source is told.
func TestDamagedFrame(t *testing.T) {
	for _, bg := range []Background{None, Full} {
		t.Run(bg.String(), func(t *testing.T) {
			uffdtest.Need(t, "POISON")
			const bad = 2
			s := serveChild(t, setting{
				child: uffdtest.Options{Pages: 128},
				pager: Options{Background: bg},
				damage: func(m *imagetest.Mem, ix *image.Index) {
					b := append([]byte(nil), m.Get("pages.lz4")...)
					b[ix.Frame(bad).Offset+5] ^= 4
					m.Set("pages.lz4", b)
				},
			})
			ix, err := s.pager.img.LoadIndex(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			lost := map[page.Addr]bool{}
			for _, r := range ix.FrameRuns(bad) {
				for a := r.Page; a < r.Range().End; a += page.Size {
					lost[a] = true
				}
			}
			for i := range 128 {
				got := make([]byte, page.Size)
				local := []unix.Iovec{{Base: &got[0], Len: page.Size}}
				from := []unix.RemoteIovec{{Base: uintptr(s.Addr(i)), Len: page.Size}}
				_, err := unix.ProcessVMReadv(s.Pid, local, from, 0)
				if lost[page.Addr(s.Addr(i))] {
					if err == nil {
						t.Errorf("page %d of the damaged frame was read", i)
					}
				} else if err != nil || uffdtest.Sum(got) != uffdtest.Sum(s.want[i*page.Size:(i+1)*page.Size]) {
					t.Errorf("page %d: %v, or wrong", i, err)
				}
			}
			if bg == None {
				s.Kill()
			}
			if err := s.wait(t); !errors.Is(err, image.ErrDamaged) {
				t.Errorf("Serve = %v, want ErrDamaged", err)
			}
			if len(s.mem.Rejected()) == 0 {
				t.Error("the source was not told")
			}
		})
	}
}

// Many threads on random pages, amid the background and forks: no byte is
// wrong and nobody is forgotten.
func TestManyThreads(t *testing.T) {
	const threads = 6
	s := serveChild(t, setting{child: uffdtest.Options{Pages: 6000, Threads: threads}})
	var wg sync.WaitGroup
	errs := make(chan error, threads)
	for k, th := range s.Threads {
		wg.Go(func() {
			for i := range 1000 {
				p := (i*7919 + k*1543) % 6000
				got, err := th.Load(s.Addr(p)).Result()
				if err == nil && got != uint64(s.want[p*page.Size]) {
					err = fmt.Errorf("page %d begins with %d, want %d", p, got, s.want[p*page.Size])
				}
				if err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	if err := s.wait(t); err != nil {
		t.Error(err)
	}
	s.check(t, s.Thread)
}
