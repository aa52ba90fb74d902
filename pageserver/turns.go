package pageserver

import (
	"sync"
	"sync/atomic"
)

// turns lets a few pieces of background be sent at a time, and each client in
// its turn: however many connections and requests one has, the others get as
// much. What is read on demand asks for no turn.
type turns struct {
	taken atomic.Int32 // turns that somebody has

	mu    sync.Mutex
	free  int        // under mu: turns that nobody has
	queue []*waiters // under mu: clients that wait, the next one first
}

// waiters are the goroutines of one client that wait for a turn.
type waiters struct {
	list []chan struct{} // under turns.mu, the first one first
}

func newTurns(n int) *turns { return &turns{free: n} }

// idle reports whether nobody has a turn.
func (t *turns) idle() bool { return t.taken.Load() == 0 }

// take waits for a turn of the client.
func (t *turns) take(w *waiters) {
	t.mu.Lock()
	if t.free > 0 {
		t.free--
		t.taken.Add(1)
		t.mu.Unlock()
		return
	}
	turn := make(chan struct{})
	if w.list = append(w.list, turn); len(w.list) == 1 {
		t.queue = append(t.queue, w)
	}
	t.mu.Unlock()
	<-turn
}

// give passes a turn on.
func (t *turns) give() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.queue) == 0 {
		t.free++
		t.taken.Add(-1)
		return
	}
	w := t.queue[0]
	t.queue = t.queue[1:]
	turn := w.list[0]
	if w.list = w.list[1:]; len(w.list) > 0 {
		t.queue = append(t.queue, w) // behind the others
	}
	close(turn)
}
