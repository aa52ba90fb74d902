package lazyrestore

import "time"

// reporter passes progress on, about ten times a second. It belongs to one
// goroutine.
type reporter struct {
	to    func(Progress)
	phase string
	last  time.Time
	now   Progress
}

const reportEvery = 100 * time.Millisecond

func newReporter(to func(Progress), phase string) *reporter {
	return &reporter{to: to, phase: phase}
}

func (r *reporter) at(done, total uint64) {
	if r.to == nil {
		return
	}
	r.now = Progress{Phase: r.phase, Done: done, Total: total}
	if t := time.Now(); t.Sub(r.last) >= reportEvery {
		r.last = t
		r.to(r.now)
	}
}

// end reports the last state.
func (r *reporter) end() {
	if r.to != nil && r.now.Phase != "" {
		r.to(r.now)
	}
}

// report tells how much of the memory is there, until all is or the pager has
// left.
func (p *Process) report(to func(Progress)) {
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for {
		now := p.Stats()
		to(Progress{Phase: "fill", Done: min(now.InstalledBytes, p.result.LazyBytes), Total: p.result.LazyBytes, Pager: &now})
		select {
		case <-p.ended:
			return
		case <-tick.C:
		}
	}
}
