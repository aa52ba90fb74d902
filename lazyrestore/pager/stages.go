package pager

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/trace"
)

// Stages is where the time of the faults went. Their sum is the time from the
// reading of a fault to its page being there.
type Stages struct {
	Queue  Stage // until somebody turned to it: behind other faults, or waiting for who fetches its frame already
	Fetch  Stage // reading the frame from the source, tries that failed and their pauses included
	Decode Stage // checking and decoding it
	Copy   Stage // installing the page; of a huge page fetching and decoding too
}

// A Stage is one part of all faults.
type Stage struct{ Mean, P50, P99 time.Duration }

// stageCounters are the running values behind Stages.
type stageCounters struct{ queue, fetch, decode, copying stageCounter }

type stageCounter struct {
	histogram
	n, sum atomic.Int64
}

func (c *stageCounter) add(d int64) {
	c.histogram.add(time.Duration(d))
	c.n.Add(1)
	c.sum.Add(d)
}

func (c *stageCounter) stage() Stage {
	n := max(c.n.Load(), 1)
	return Stage{Mean: time.Duration(c.sum.Load() / n), P50: c.quantile(0.5), P99: c.quantile(0.99)}
}

// stages is nil of nil counters: nobody has asked.
func (c *stageCounters) stages() *Stages {
	if c == nil {
		return nil
	}
	return &Stages{c.queue.stage(), c.fetch.stage(), c.decode.stage(), c.copying.stage()}
}

// A stopwatch takes the time of what one goroutine does. It is nil unless
// somebody wants to know: looking at the clock is a percent of a fault.
type stopwatch struct {
	*session
	row trace.Row

	// In the session's clock. What was not fetched took no time.
	began, fetched, decoded int64
}

// newStopwatch is for the goroutine whose row in a trace has the name.
func (se *session) newStopwatch(name string) *stopwatch {
	if se.stats.stages == nil {
		return nil
	}
	return &stopwatch{session: se, row: se.trace.Row(traceCommand, name)}
}

// The methods of a stopwatch do nothing where it is nil.

func (w *stopwatch) begin() {
	if w != nil {
		w.began = w.now()
		w.fetched, w.decoded = w.began, w.began
	}
}

// hasFetched and hasDecoded end a stage.
func (w *stopwatch) hasFetched() {
	if w != nil {
		w.fetched = w.now()
	}
}

func (w *stopwatch) hasDecoded() {
	if w != nil {
		w.decoded = w.now()
	}
}

// hook is what a FrameReader calls between its stages; nil of a nil stopwatch.
func (w *stopwatch) hook() func() {
	if w == nil {
		return nil
	}
	return w.hasFetched
}

// served books a fault whose page is there at end. Stages that lie before the
// fault are no part of it: another one had begun them.
func (w *stopwatch) served(f fault, end int64) {
	if w == nil {
		return
	}
	began, fetched, decoded := max(w.began, f.at), max(w.fetched, f.at), max(w.decoded, f.at)
	c := w.stats.stages
	c.queue.add(began - f.at)
	c.fetch.add(fetched - began)
	c.decode.add(decoded - fetched)
	c.copying.add(end - decoded)
	if w.trace == nil {
		return
	}
	w.threads.record(w, f, began, fetched, decoded, end)
	w.count()
}

// filled records a span of frames that the background has fetched and decoded,
// and, unless that is left to the reader, installed.
func (w *stopwatch) filled(first, n, bytes int) {
	if w == nil || w.trace == nil {
		return
	}
	end := w.now()
	w.span(w.row, "fill", w.began, end, trace.Int("frame", first), trace.Int("frames", n), trace.Int("bytes", bytes))
	w.span(w.row, "fetch", w.began, w.fetched)
	w.span(w.row, "decode", w.fetched, w.decoded)
	w.span(w.row, "copy", w.decoded, end)
	w.count()
}

// did records something else, from begin on.
func (w *stopwatch) did(name string) {
	if w != nil && w.trace != nil {
		w.span(w.row, name, w.began, w.now())
	}
}

func (w *stopwatch) span(row trace.Row, name string, from, to int64, args ...trace.Arg) int {
	return w.trace.Span(row, name, w.traceSkew+time.Duration(from), w.traceSkew+time.Duration(to), args...)
}

// count records how much of the memory is there.
func (w *stopwatch) count() { w.trace.Count(0, "installed bytes", w.stats.installed.Load()) }

// traceCommand is the process of a trace that the pager's rows are in.
const traceCommand = "lazyrestore"

// threadRows are the rows of the threads that have faulted.
type threadRows struct {
	mu   sync.Mutex
	rows map[uint32]*threadRow // guarded by mu
}

// A threadRow has the latest faults of one thread, in the order in which they
// began.
type threadRow struct {
	row    trace.Row
	faults []recorded
}

type recorded struct {
	at    int64 // when it began
	spans []int
}

// latestFaults is more than are ever under way for one thread: it has been woken
// from all but the last.
const latestFaults = 8

// record records a fault, with its stages. A thread has one at a time: if it
// raised the next one it had been woken from this one before, although the
// goroutine that woke it read the clock only later. They may come in any order.
func (t *threadRows) record(w *stopwatch, f fault, began, fetched, decoded, end int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.rows[f.tid]
	if r == nil {
		if t.rows == nil {
			t.rows = make(map[uint32]*threadRow)
		}
		r = &threadRow{row: w.trace.Row(fmt.Sprintf("process %d", w.target.Pid), fmt.Sprintf("thread %d", f.tid))}
		t.rows[f.tid] = r
	}
	spans := []int{w.span(r.row, "fault", f.at, end, trace.Text("address", f.addr.String()))}
	for _, s := range [...]struct {
		name     string
		from, to int64
	}{{"queue", f.at, began}, {"fetch", began, fetched}, {"decode", fetched, decoded}, {"copy", decoded, end}} {
		if s.to > s.from {
			spans = append(spans, w.span(r.row, s.name, s.from, s.to))
		}
	}
	i := len(r.faults)
	for i > 0 && r.faults[i-1].at > f.at {
		i--
	}
	if i < len(r.faults) {
		w.trace.Cut(w.traceSkew+time.Duration(r.faults[i].at), spans...)
	}
	if i > 0 {
		w.trace.Cut(w.traceSkew+time.Duration(f.at), r.faults[i-1].spans...)
	}
	r.faults = slices.Insert(r.faults, i, recorded{f.at, spans})
	r.faults = r.faults[max(len(r.faults)-latestFaults, 0):]
}
