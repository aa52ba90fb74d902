package native

import (
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
	"github.com/lazyrestore/lazyrestore/lazyrestore/trace"
)

// The processes of a trace, as its rows name them.
const traceCommand = "lazyrestore"

// TraceProgram is the name of a restored process in a trace.
func TraceProgram(pid int) string { return fmt.Sprintf("process %d", pid) }

const timespecSize = 16

// readClock is the call by which a process that builds itself says when: it
// reads the one clock that no time namespace shifts into the timespec at addr.
func readClock(addr uint64) proc.Call {
	return proc.Call{NR: unix.SYS_CLOCK_GETTIME | proc.MayFail, Args: [6]uint64{unix.CLOCK_REALTIME, addr}}
}

// reading is the clock before step i of a timed table; ok is false where the
// process has not come to it.
func (b *builder) reading(t *table, i int) (at time.Duration, ok bool) {
	c := t.portionOf(i)
	word := b.prog.buf[c.readings+timespecSize*(i-c.first):]
	seconds, nanos := binary.NativeEndian.Uint64(word), binary.NativeEndian.Uint64(word[8:])
	return b.trace.AtWall(int64(seconds)*1e9 + int64(nanos)), seconds != 0
}

// traceProgram records what the process has done of its program; began is when
// it was started.
func (b *builder) traceProgram(began time.Duration) {
	if b.trace == nil {
		return
	}
	process := TraceProgram(b.st.PID)
	row := b.trace.Row(process, "builds itself")
	if first, ok := b.reading(b.main, 0); ok {
		b.trace.Span(row, "clone, exec, map the program, gate", began, first)
	}
	b.traceTable(b.main, row)
	for i, t := range b.threadTables {
		b.traceTable(t, b.trace.Row(process, fmt.Sprintf("thread %d builds itself", b.st.Threads[i+1].TID)))
	}
}

// traceTable records the steps of a table that have returned, inside its
// parts. The last step, at which a thread waits for its registers, has no end.
func (b *builder) traceTable(t *table, row trace.Row) {
	n := 0
	var at []time.Duration
	for ; n < t.placed; n++ {
		now, ok := b.reading(t, n)
		if !ok {
			break
		}
		at = append(at, now)
	}
	if n == 0 {
		return
	}
	for i, p := range t.parts {
		end := n - 1
		if i+1 < len(t.parts) {
			end = min(end, t.parts[i+1].first)
		}
		if p.first < end {
			b.trace.Span(row, p.name, at[p.first], at[end], trace.Int("calls", end-p.first))
		}
	}
	for i := range at[:n-1] {
		s := &t.steps[i]
		b.trace.Span(row, s.what, at[i], at[i+1], trace.Text("step", s.String()))
	}
}
