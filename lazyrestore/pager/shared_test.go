package pager

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// As long as shared memory is missing, or it is not known whether, it is looked who raises an event
// before that is read; once all of it is there no longer, whatever else is missing.
func TestLooksEndWithSharedMemory(t *testing.T) {
	const private, shared = 5, 6
	mem, _ := imagetest.Write(t, image.WriterOptions{Spec: chunk.Spec{Codec: chunk.LZ4}, ChunkSize: 4 * page.Size},
		imagetest.Run{At: testBase, P: nonzero(private)}, imagetest.Run{At: page.ImageShared, P: nonzero(shared)})
	se := fakeSessionOf(t, mem, plainSource)
	l, err := newLayout([]page.Mapping{
		{Range: page.RangeOf(testBase, private*page.Size), Image: testBase, PageSize: page.Size},
		{Range: page.RangeOf(testBase+1<<30, shared*page.Size), Image: page.ImageShared, PageSize: page.Size, Shared: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{}
	s := newSpace(se.pages, w.add(-1, 1, l), nil, &fakeMemory{}, nil)
	sg := se.pages.opened[0].Swap(nil)
	if !s.missesShared(se.pages) {
		t.Error("nothing is missing before the index is there")
	}
	se.pages.opened[0].Store(sg)
	first, end := sg.numbers(page.RangeOf(page.ImageShared, shared*page.Size))
	if end-first != shared {
		t.Fatalf("shared memory has the numbers from %d up to %d", first, end)
	}
	for n := range shared {
		if !s.missesShared(se.pages) {
			t.Errorf("nothing is missing with %d pages of %d", n, shared)
		}
		s.settle(end-1-n, end-n)
	}
	if s.missesShared(se.pages) {
		t.Error("something is missing with all pages")
	}
	if got := s.left.Load(); got != private {
		t.Errorf("%d pages are missing, want %d", got, private)
	}
	j, err := newJournal(w)
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	r := &reader{worker: *se.newWorker("reader"), world: w, journal: j}
	defer r.close()
	slots, seen := r.slots(s) // without a descriptor nothing could be looked at
	if len(slots) < 2 || seen.looked {
		t.Errorf("messages are read %d at a time, after a look: %v", len(slots), seen.looked)
	}
}

// nonzero is pages that are not zero.
func nonzero(pages int) []byte {
	b := make([]byte, pages*page.Size)
	for i := range b {
		b[i] = byte(i%251) + 1
	}
	return b
}

// Who waits for a page of shared memory that is truncated meanwhile gets SIGBUS, as without
// a pager, and what else is in its chunk is there.
func TestTruncatedWhileAwaited(t *testing.T) {
	for _, bg := range []Background{None, Full} {
		t.Run(bg.String(), func(t *testing.T) {
			uffdtest.Need(t, "root")
			const pages, left = 64, 40
			release, fetching := make(chan struct{}), make(chan struct{}, 100)
			var r *remote
			s := serveChild(t, setting{
				child: uffdtest.Options{Pages: pages, Kind: uffdtest.Shmem},
				pager: Options{Background: bg},
				source: remoteOf(&r, func(ctx context.Context, lane image.Lane) error {
					if lane == image.Demand {
						fetching <- struct{}{}
					}
					select {
					case <-release:
					case <-ctx.Done():
					}
					return ctx.Err()
				}),
			})
			th, pid := s.Fork(t)
			pid.Wait(t)
			reply := th.Load(s.Addr(left + 5))
			<-fetching
			name := fmt.Sprintf("/proc/%d/map_files/%x-%x", s.Pid, s.Start, s.Start+s.Length)
			if err := os.Truncate(name, left*page.Size); err != nil {
				t.Fatal(err)
			}
			close(release)
			if !reply.Ready(uffdtest.Timeout) {
				t.Fatal("it waits on")
			}
			if got, err := reply.Result(); !uffdtest.Gone(err) {
				t.Errorf("it reads %d, %v, want its end by SIGBUS", got, err)
			}
			s.checkAt(t, s.Thread, s.Start, 0, left*page.Size)
			if bg == None {
				s.Kill()
			}
			if err := s.wait(t); err != nil {
				t.Error(err)
			}
		})
	}
}
