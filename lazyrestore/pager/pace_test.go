package pager

import (
	"testing"
	"time"
)

// After a fault nothing else is done for a moment, and for as long as faults
// come little, but more and more.
func TestPace(t *testing.T) {
	const us, ms = int64(time.Microsecond), int64(time.Millisecond)
	p := pace{lull: lull, last: -demandRecent}
	if !p.free(0) {
		t.Error("not free before the first fault")
	}
	now := 5 * ms
	p.fault(now)
	p.worked(now, now+10*us)
	// faults has them come for a while, none of them a lull after the one before.
	faults := func(d int64) {
		for end := now + d; now < end; now += lull / 2 {
			p.fault(now)
		}
	}
	for _, want := range []int64{16, 8, 4, 2, 1, 1} {
		if p.besieged() != (want == 1) {
			t.Errorf("at %v: besieged: %v", time.Duration(now), p.besieged())
		}
		p.fault(now)
		p.worked(now, now+10*us)
		now += 10 * us
		if due := now + want*10*us; p.due != due {
			t.Errorf("at %v: due after %v, want %v", time.Duration(now), time.Duration(p.due-now), time.Duration(due-now))
		}
		p.fault(now)
		if p.free(now + 1) {
			t.Errorf("at %v: free just after a fault", time.Duration(now))
		}
		if !p.free(now+lull) || !p.free(p.due) {
			t.Errorf("at %v: not free after a lull, or when it is due", time.Duration(now))
		}
		faults(easing)
	}
	p.worked(now, now+ms)
	if p.served(now); p.free(now+lull-1) || !p.free(now+lull) {
		t.Error("the lull does not begin when a fault has been served")
	}
	now += demandRecent + 1
	p.fault(now)
	p.worked(now, now+10*us)
	if p.besieged() || p.free(now+11*us) {
		t.Error("a pause does not begin it anew")
	}
	alone := pace{}
	alone.fault(now)
	if alone.worked(now, now+us); !alone.free(now + us) {
		t.Error("not free where there is no time to wait")
	}
}
