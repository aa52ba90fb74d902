package trace_test

import (
	"bytes"
	"encoding/json"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lazyrestore/lazyrestore/lazyrestore/trace"
)

// An event as the Trace Event Format has it.
type event struct {
	Phase string         `json:"ph"`
	Name  string         `json:"name"`
	PID   int            `json:"pid"`
	TID   int            `json:"tid"`
	Start float64        `json:"ts"`
	Dur   float64        `json:"dur"`
	Scope string         `json:"s"`
	Args  map[string]any `json:"args"`
}

func events(t *testing.T, r *trace.Recorder) []event {
	t.Helper()
	var b bytes.Buffer
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	var file struct {
		Unit   string            `json:"displayTimeUnit"`
		Other  map[string]string `json:"otherData"`
		Events []event           `json:"traceEvents"`
	}
	if err := json.Unmarshal(b.Bytes(), &file); err != nil {
		t.Fatalf("%v:\n%s", err, &b)
	}
	return file.Events
}

func TestWrite(t *testing.T) {
	begin := time.Now()
	r := trace.New(begin, "restore", "main")
	fill := r.Row("restore", "fill \"0\"")
	thread := r.Row("program", "thread 7")
	r.Span(0, "read", 1500, 2*time.Microsecond+1)
	r.Span(thread, "fault", r.At(begin.Add(5*time.Microsecond)), r.AtWall(begin.UnixNano()+7000),
		trace.Int("frame", 3), trace.Text("kind", "a \"b\"\n\x01é"))
	r.Span(fill, "backwards", 10, 4)
	got := events(t, r)
	names := []event{
		{Phase: "M", Name: "process_name", PID: 1, Args: map[string]any{"name": "restore"}},
		{Phase: "M", Name: "thread_name", PID: 1, TID: 1, Args: map[string]any{"name": "main"}},
		{Phase: "M", Name: "thread_sort_index", PID: 1, TID: 1, Args: map[string]any{"sort_index": 0.0}},
		{Phase: "M", Name: "thread_name", PID: 1, TID: 2, Args: map[string]any{"name": "fill \"0\""}},
		{Phase: "M", Name: "thread_sort_index", PID: 1, TID: 2, Args: map[string]any{"sort_index": 1.0}},
		{Phase: "M", Name: "process_name", PID: 2, Args: map[string]any{"name": "program"}},
		{Phase: "M", Name: "thread_name", PID: 2, TID: 3, Args: map[string]any{"name": "thread 7"}},
		{Phase: "M", Name: "thread_sort_index", PID: 2, TID: 3, Args: map[string]any{"sort_index": 2.0}},
	}
	want := append(
		names,
		event{Phase: "X", Name: "read", PID: 1, TID: 1, Start: 1.5, Dur: 0.501},
		event{Phase: "X", Name: "fault", PID: 2, TID: 3, Start: 5, Dur: 2, Args: map[string]any{"frame": 3.0, "kind": "a \"b\"\n\x01é"}},
		event{Phase: "X", Name: "backwards", PID: 1, TID: 2, Start: 0.01},
	)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func TestMomentsAndCounts(t *testing.T) {
	r := trace.New(time.Now(), "p", "t")
	end := r.Begin(0, "phase")
	r.Mark(0, "fork")
	r.Count(0, "resident", 4096)
	end()
	got := events(t, r)[3:]
	if len(got) != 3 {
		t.Fatalf("%d events, want 3", len(got))
	}
	mark, count, phase := got[0], got[1], got[2]
	if mark.Phase != "i" || mark.Scope != "t" || count.Phase != "C" || count.Args["value"] != 4096.0 {
		t.Errorf("mark %+v, count %+v", mark, count)
	}
	if phase.Start > mark.Start || phase.Start+phase.Dur < count.Start {
		t.Errorf("the phase %+v does not contain %+v and %+v", phase, mark, count)
	}
}

// Spans are made shorter once it is known that they were; what was over stays.
func TestCut(t *testing.T) {
	r := trace.New(time.Now(), "p", "t")
	over := r.Span(0, "over", 1000, 2000)
	long := r.Span(0, "long", 1000, 9000, trace.Int("n", 1))
	late := r.Span(0, "late", 7000, 9000)
	r.Cut(8000, long) // by who knew less
	r.Cut(5000, over, long, late, -1)
	want := []event{
		{Phase: "X", Name: "over", PID: 1, TID: 1, Start: 1, Dur: 1},
		{Phase: "X", Name: "long", PID: 1, TID: 1, Start: 1, Dur: 4, Args: map[string]any{"n": 1.0, "cut_ns": 4000.0}},
		{Phase: "X", Name: "late", PID: 1, TID: 1, Start: 5, Args: map[string]any{"cut_ns": 4000.0}},
	}
	if diff := cmp.Diff(want, events(t, r)[3:]); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

// A restore that nobody traces has a nil recorder.
func TestNil(t *testing.T) {
	var r *trace.Recorder
	if n := testing.AllocsPerRun(100, func() {
		r.Begin(r.Row("p", "t"), "x")()
		r.Span(0, "x", r.Now(), r.At(time.Time{}))
		r.Mark(0, "x")
		r.Count(0, "x", uint64(r.AtWall(1)))
		r.Cut(1, r.Span(0, "x", 0, 2))
	}); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

func TestConcurrent(t *testing.T) {
	r := trace.New(time.Now(), "p", "t")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			row := r.Row("p", "w")
			for range 1000 {
				r.Span(row, "x", 0, 1)
			}
		})
	}
	wg.Wait()
	if got := len(events(t, r)); got != 1+2*5+4000 {
		t.Errorf("%d events, want 4011", got)
	}
}
