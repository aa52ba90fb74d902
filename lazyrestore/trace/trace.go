// Package trace records what a restore did when, and writes it in the Trace
// Event Format that chrome://tracing and ui.perfetto.dev read.
//
// A nil *Recorder records nothing, and asking it costs a comparison: code that
// may be traced holds one that is nil unless somebody wants a trace. Who would
// have to prepare arguments, or to read the clock, looks first:
//
//	if rec != nil {
//		rec.Span(row, "fetch", began, rec.Now(), trace.Int("frame", frame))
//	}
//
// All methods may be called concurrently.
package trace

import (
	"slices"
	"sync"
	"time"
)

// most bounds what a recorder holds, to some 100 MiB. What comes later is
// counted and left out.
const most = 1 << 20

// A Row is a line of the picture: a thread, a goroutine, a worker. What is
// recorded on one row follows or contains one another. Row 0 is the first one
// of the process that records.
type Row int

// A Recorder holds what was recorded. See the package comment for nil.
type Recorder struct {
	begin time.Time // where its clock begins

	mu      sync.Mutex
	rows    []row   // guarded by mu
	events  []event // guarded by mu
	dropped int     // guarded by mu
}

type row struct{ process, name string }

type event struct {
	kind       byte // as the format has it: X, i, C
	row        Row
	name       string
	start, end time.Duration
	args       []Arg
}

// An Arg is a fact about a span: a number, or a text where that is not empty.
type Arg struct {
	name string
	n    int64
	text string
}

// Int is a number with its name.
func Int[N int | int64 | uint32 | uint64](name string, n N) Arg { return Arg{name: name, n: int64(n)} }

// Text is a text with its name.
func Text(name, text string) Arg { return Arg{name: name, text: text} }

// New is a recorder whose clock begins at begin, which holds a monotonic
// reading (time.Now). Its row 0 has the name given.
func New(begin time.Time, process, name string) *Recorder {
	return &Recorder{begin: begin, rows: []row{{process, name}}}
}

// Row makes a row, below the others of its process.
func (r *Recorder) Row(process, name string) Row {
	if r == nil {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rows = append(r.rows, row{process, name})
	return Row(len(r.rows) - 1)
}

// Now is the time on the recorder's clock, 0 of a nil one.
func (r *Recorder) Now() time.Duration {
	if r == nil {
		return 0
	}
	return time.Since(r.begin)
}

// At is a moment on the recorder's clock.
func (r *Recorder) At(t time.Time) time.Duration {
	if r == nil {
		return 0
	}
	return t.Sub(r.begin)
}

// AtWall is a reading of CLOCK_REALTIME, which no namespace shifts, in
// nanoseconds, on the recorder's clock. It is off by as much as the clock has
// been set since New.
func (r *Recorder) AtWall(nanoseconds int64) time.Duration {
	if r == nil {
		return 0
	}
	return time.Duration(nanoseconds - r.begin.UnixNano())
}

// Span records what took from start to end, and gives its number for Cut.
func (r *Recorder) Span(on Row, name string, start, end time.Duration, args ...Arg) int {
	return r.add(event{kind: 'X', row: on, name: name, start: start, end: max(start, end), args: args})
}

// Cut ends spans at a moment, those that have not ended before: something shows
// that they were over by then, and who recorded them came to the clock late. By
// how much is an argument of theirs, cut_ns.
func (r *Recorder) Cut(at time.Duration, spans ...int) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range spans {
		if n < 0 || r.events[n].end <= at {
			continue
		}
		e := &r.events[n]
		e.start = min(e.start, at)
		cut := int64(e.end - at)
		e.end = at
		if i := slices.IndexFunc(e.args, func(a Arg) bool { return a.name == cutArg }); i >= 0 {
			e.args[i].n += cut // it has been cut before, at a later moment
			continue
		}
		e.args = append(slices.Clip(e.args), Int(cutArg, cut))
	}
}

// cutArg is by how many nanoseconds a span is shorter than it was recorded.
const cutArg = "cut_ns"

// Begin is a span from now until the function is called that it returns.
func (r *Recorder) Begin(on Row, name string) (end func()) {
	if r == nil {
		return func() {}
	}
	start := r.Now()
	return func() { r.Span(on, name, start, r.Now()) }
}

// Mark records a moment.
func (r *Recorder) Mark(on Row, name string, args ...Arg) {
	if r != nil {
		now := r.Now()
		r.add(event{kind: 'i', row: on, name: name, start: now, end: now, args: args})
	}
}

// Count records the value of something that changes, now.
func (r *Recorder) Count(on Row, name string, value uint64) {
	if r != nil {
		now := r.Now()
		r.add(event{kind: 'C', row: on, name: name, start: now, end: now, args: []Arg{Int("value", value)}})
	}
}

// add gives the number of the event; -1 where it is not kept.
func (r *Recorder) add(e event) int {
	if r == nil {
		return -1
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.events) == most {
		r.dropped++
		return -1
	}
	r.events = append(r.events, e)
	return len(r.events) - 1
}
