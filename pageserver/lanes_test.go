package pageserver

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// Turns go round the clients, whatever number of goroutines each has.
func TestTurnsAreFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const free = 2
		turns := newTurns(free)
		clients := make([]*waiters, 3)
		var mu sync.Mutex
		var order []int
		running, most := 0, 0
		var wg sync.WaitGroup
		for i := range clients {
			clients[i] = new(waiters)
			for range []int{30, 10, 1}[i] { // goroutines
				wg.Go(func() {
					for range 4 {
						turns.take(clients[i])
						mu.Lock()
						order = append(order, i)
						running++
						most = max(most, running)
						mu.Unlock()
						time.Sleep(time.Millisecond) // of synthetic time
						mu.Lock()
						running--
						mu.Unlock()
						turns.give()
					}
				})
				synctest.Wait()
			}
		}
		wg.Wait()
		if most != free {
			t.Errorf("up to %d turns at once, want %d", most, free)
		}
		if turns.free != free || len(turns.queue) != 0 {
			t.Errorf("left: %d free, %d clients in the queue", turns.free, len(turns.queue))
		}
		// While all three wait, each has a third: the one goroutine of the last
		// has its four turns among the first that are given. Between two of them
		// are a round and what runs meanwhile; in one queue there would be forty.
		last := 0
		for at, i := range order {
			if i == 2 {
				last = at
			}
		}
		if first := slices.Index(order, 2); last-first > 3*8 {
			t.Errorf("the third client waited: %v", order[:last+1])
		}
	})
}

// On a connection demand goes before background that came earlier.
func TestOutletLetsDemandFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutlet()
		o.take()
		var mu sync.Mutex
		var order []string
		did := func(what string) {
			mu.Lock()
			defer mu.Unlock()
			order = append(order, what)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			for !o.try() {
				o.await()
			}
			did("background")
			o.give()
		})
		synctest.Wait()
		for range 3 {
			wg.Go(func() {
				o.take()
				did("demand")
				time.Sleep(time.Millisecond)
				o.give()
			})
			synctest.Wait()
		}
		o.give()
		wg.Wait()
		if want := []string{"demand", "demand", "demand", "background"}; !slices.Equal(order, want) {
			t.Errorf("%v, want %v", order, want)
		}
	})
}

// A demand read is answered before background that was asked for earlier, on
// its own connection and on others.
func TestDemandGoesFirst(t *testing.T) {
	s := newSite(t, ServerOptions{})
	addr := s.listenTCP(t)
	p := smallBuffers(t, addr)
	p.greet(1)
	p.mustOpen()
	const reads = 10
	for i := range uint32(reads) {
		p.write(wire.Read{Image: 1, Length: 5 << 20, Object: "pages.lz4"}.Append(nil, 100+i, wire.FlagBackground))
	}
	until(t, "background is in flight", func() bool { return s.inFlight() == reads })
	p.write(wire.Read{Image: 1, Length: 4096, Object: "process.bin"}.Append(nil, 500, 0))
	p.write(wire.Read{Image: 1, Length: 100_000, Object: "process.bin"}.Append(nil, 501, 0))
	before, answered := 0, 0
	for answered < 2 {
		m := p.next()
		switch {
		case m.ID >= 500 && m.Flags&wire.FlagLast != 0:
			answered++
		case m.Flags&wire.FlagLast != 0:
			before++
		}
	}
	// What was in the sockets stood before it.
	if before > reads/2 {
		t.Errorf("%d of %d background reads were answered before the demand read", before, reads)
	}
	other := dial(t, addr)
	other.greet(2)
	got, err := other.mustOpen().read("process.bin", 0, 4096, 0)
	same(t, "another client", got, err, s.objects["process.bin"][:4096])
	p.nc.Close()
}

func TestHistogram(t *testing.T) {
	var h histogram
	for _, tt := range []struct {
		d    time.Duration
		want int
	}{
		{-1, 0},
		{0, 0},
		{time.Microsecond, 0},
		{time.Microsecond + 1, 1},
		{2 * time.Microsecond, 1},
		{2*time.Microsecond + 1, 2},
		{time.Second, 20},
		{time.Hour, Buckets},
	} {
		before := h.snapshot()
		h.observe(tt.d)
		after := h.snapshot()
		if after.Counts[tt.want] != before.Counts[tt.want]+1 {
			t.Errorf("%v is not in bucket %d: %v", tt.d, tt.want, after.Counts)
		}
		if tt.want < Buckets && tt.d > BucketBound(tt.want) {
			t.Errorf("%v is beyond %v", tt.d, BucketBound(tt.want))
		}
	}
}
