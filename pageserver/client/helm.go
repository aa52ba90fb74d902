package client

import (
	"context"
	"errors"
	"time"
)

// A connection of the background has no reader of its own: whoever waits for
// something that is to come over it reads it, to where it belongs, and the others
// wait until they have the helm or somebody has read what they wait for. So no thread
// is woken for what another one has received, and what has come is in the cache of the
// processor that decodes it. While nobody waits for anything nobody reads; now
// and then the lane does (watch).

// await waits until done is closed, which whoever reads does, or r is done. It
// reports whether it took sleep.
func (l *lane) await(ctx context.Context, r *request, done <-chan struct{}) (slept bool, err error) {
	for {
		var helm chan struct{}
		l.mu.Lock()
		k, news := r.on, l.news
		l.mu.Unlock()
		if k != nil {
			helm = k.helm
		}
		select {
		case <-done:
			return slept, nil
		case <-r.done:
			return slept, r.err
		case <-ctx.Done():
			return slept, context.Cause(ctx)
		case <-news:
		case <-helm:
			slept = k.steer(ctx, r, done) || slept
		}
	}
}

// tell has all who wait look again where their requests are. The caller holds mu.
func (l *lane) tell() {
	close(l.news)
	l.news = make(chan struct{})
}

// steer reads the connection until done is closed, r is done, ctx is, or the
// connection ends. The caller has the helm, which is given back.
func (k *conn) steer(ctx context.Context, r *request, done <-chan struct{}) (slept bool) {
	k.in.slept, k.in.patience = false, moment
	defer k.giveHelm()
	defer k.hasRead()
	for !closed(done) && !closed(r.done) {
		err := k.step()
		switch {
		case errors.Is(err, errNothing) && ctx.Err() != nil:
			return true
		case errors.Is(err, errNothing):
			// It takes longer: others may have the thread.
			k.lane.lately.Store(latelyReads)
			k.in.patience = forever
			stop := context.AfterFunc(ctx, func() { k.close(context.Cause(ctx)) })
			defer stop()
		case err != nil:
			k.close(err)
			return true
		}
	}
	return k.in.slept
}

// latelyReads is for how many reads it counts that there was nothing to read: who takes
// much at a time finds some of what comes in time.
const latelyReads = 32

// hasRead notes whether there was something to read.
func (k *conn) hasRead() {
	switch n := k.lane.lately.Load(); {
	case k.in.slept:
		k.lane.lately.Store(latelyReads)
	case n > 0:
		k.lane.lately.Store(n - 1)
	}
}

// drain reads what is there, if nobody reads.
func (k *conn) drain() {
	select {
	case <-k.helm:
	default:
		return
	}
	defer k.giveHelm()
	k.in.patience = none
	for until := time.Now().Add(drainTime); time.Now().Before(until); {
		err := k.step()
		switch {
		case errors.Is(err, errNothing):
			return
		case err != nil:
			k.close(err)
			return
		}
	}
}

// drainTime bounds what one drain takes.
const drainTime = 20 * time.Millisecond

// giveHelm lets others read, unless the connection has been closed: then that is
// its end.
func (k *conn) giveHelm() {
	k.lane.mu.Lock()
	over := k.why != nil
	if !over {
		k.helm <- struct{}{}
	}
	k.lane.mu.Unlock()
	if over {
		k.end(nil)
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
