package native

import (
	"sort"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// A table is placed in the program in one portion or in several. Those of the
// first thread's are handed to the process one by one: it runs what has been
// planned, while the rest is. At the end of each it waits for the next.

// portionSteps is how many steps are handed over at a time: enough to keep the
// process busy while as many are planned.
const portionSteps = 256

// firstSteps is how many are planned before the process is started: a step takes it longer than
// planning one takes.
const firstSteps = 64

// A portion is steps of a table that lie in the program.
type portion struct {
	first int    // its first step
	addr  uint64 // in the process
	off   int    // in the program's buf
	end   int    // where its last entry lies there

	// Where steps are timed: where the readings lie in the program's buf. The call
	// of step i is then the second of its two entries.
	readings int
}

// place puts t's steps, and the mark of its end, into the program, and gives the
// table's address.
func (p *program) place(t *table) uint64 {
	c := p.append(t, 0)
	if p.err == nil {
		proc.PutEnd(p.buf[c.end:])
	}
	return c.addr
}

// hand puts the steps of the first thread's table that are not there yet into the
// program and has the process run them; last says that there are no more.
func (p *program) hand(t *table, last bool) error {
	before := len(t.portions) - 1
	waits := 1
	if last {
		waits = 0
	}
	c := p.append(t, waits)
	if p.err != nil {
		return p.err
	}
	if last {
		proc.PutEnd(p.buf[c.end:])
	} else {
		p.putWait(c)
	}
	jump := proc.Jump(p.base, c.addr)
	if before < 0 {
		proc.PutCall(p.buf[firstTable:], &jump)
	} else {
		p.redirect(t.portions[before].end, c.addr)
	}
	p.given++
	return p.set(givenOffset, p.given)
}

// putWait puts the end of a portion that is not the last: the process waits until
// more portions are given than this one, and looks again whenever it wakes. The
// call that wakes it may come so late that it has run all that it was woken for,
// and waits for the next.
func (p *program) putWait(c *portion) {
	at := c.end - proc.CallSize
	wait := proc.Call{NR: unix.SYS_FUTEX | proc.MayFail, Args: [6]uint64{p.base + givenOffset, futexWait, uint64(p.given + 1)}}
	proc.PutCall(p.buf[at:], &wait) // EAGAIN: the next has been handed over
	again := proc.Jump(p.base, p.base+uint64(at))
	proc.PutCall(p.buf[c.end:], &again)
}

// append puts the steps of t that are not there yet into the program, with room
// for so many entries behind them and one more, at which the portion ends.
func (p *program) append(t *table, more int) *portion {
	steps := t.steps[t.placed:]
	t.portions = append(t.portions, portion{first: t.placed})
	c := &t.portions[len(t.portions)-1]
	t.placed = len(t.steps)
	entries := len(steps) + more + 1
	var reading uint64
	if p.timed {
		addr, to := p.alloc(timespecSize * len(steps))
		clear(to)
		reading, c.readings = addr, int(addr-p.base)
		entries += len(steps)
	}
	addr, to := p.alloc(proc.CallSize * entries)
	c.addr, c.off = addr, int(addr-p.base)
	c.end = c.off + proc.CallSize*(entries-1)
	for i := range steps {
		if p.timed {
			clock := readClock(reading + uint64(timespecSize*i))
			proc.PutCall(to, &clock)
			to = to[proc.CallSize:]
		}
		proc.PutCall(to, &steps[i].Call)
		to = to[proc.CallSize:]
	}
	return c
}

// portionOf is the portion of a step that is in the program.
func (t *table) portionOf(i int) *portion {
	if len(t.portions) == 1 {
		return &t.portions[0]
	}
	return &t.portions[sort.Search(len(t.portions), func(k int) bool { return t.portions[k].first > i })-1]
}

// entry is where the call of step i lies in the program's buf.
func (p *program) entry(t *table, i int) int {
	c := t.portionOf(i)
	i -= c.first
	if p.timed {
		i = 2*i + 1
	}
	return c.off + i*proc.CallSize
}
