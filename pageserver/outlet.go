package pageserver

import "sync"

// An outlet lets one goroutine at a time write to a connection: whole messages,
// demand before background.
type outlet struct {
	mu     sync.Mutex
	free   sync.Cond
	busy   bool // under mu: somebody writes
	demand int  // under mu: how many with demand wait
}

func newOutlet() *outlet {
	o := new(outlet)
	o.free.L = &o.mu
	return o
}

// take waits for the outlet.
func (o *outlet) take() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.demand++
	for o.busy {
		o.free.Wait()
	}
	o.demand--
	o.busy = true
}

// try takes the outlet for background, if nobody has it or waits for it with
// demand.
func (o *outlet) try() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.busy || o.demand > 0 {
		return false
	}
	o.busy = true
	return true
}

// wanted reports whether somebody waits for it with demand.
func (o *outlet) wanted() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.demand > 0
}

// await waits until try may succeed.
func (o *outlet) await() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.busy || o.demand > 0 {
		o.free.Wait()
	}
}

// give lets the next one write.
func (o *outlet) give() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.busy = false
	o.free.Broadcast()
}
