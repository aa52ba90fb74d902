package lazyrestore_test

import (
	"bytes"
	"encoding/json"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore"
	"github.com/lazyrestore/lazyrestore/lazyrestore/trace"
)

// A traceEvent is what is written of a trace, times in microseconds.
type traceEvent struct {
	Phase string  `json:"ph"`
	Name  string  `json:"name"`
	PID   int     `json:"pid"`
	TID   int     `json:"tid"`
	Start float64 `json:"ts"`
	Dur   float64 `json:"dur"`
	Args  struct {
		Name string `json:"name"`
		Step string `json:"step"`
		Cut  int64  `json:"cut_ns"` // by how much it is shorter than what was counted
	} `json:"args"`
}

func (e *traceEvent) end() float64 { return e.Start + e.Dur }

// A restoreTrace is a trace by the names of its rows.
type restoreTrace map[string][]traceEvent

func readTrace(t *testing.T, r *trace.Recorder) restoreTrace {
	t.Helper()
	var b bytes.Buffer
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	wellFormed(t, b.Bytes())
	var file struct{ TraceEvents []traceEvent }
	if err := json.Unmarshal(b.Bytes(), &file); err != nil {
		t.Fatal(err)
	}
	rows, names := restoreTrace{}, map[int]string{}
	for _, e := range file.TraceEvents {
		switch {
		case e.Phase == "M" && e.Name == "thread_name":
			names[e.TID] = e.Args.Name
		case e.Phase != "M" && e.Phase != "C":
			rows[names[e.TID]] = append(rows[names[e.TID]], e)
		}
	}
	return rows
}

// find gives the one event of a row with the name.
func (rt restoreTrace) find(t *testing.T, row, name string) traceEvent {
	t.Helper()
	var found []traceEvent
	for _, e := range rt[row] {
		if e.Name == name {
			found = append(found, e)
		}
	}
	if len(found) != 1 {
		t.Fatalf("row %q has %d events %q, want one", row, len(found), name)
	}
	return found[0]
}

// A trace has what happened in the order in which it did, also in the process.
func TestTrace(t *testing.T) {
	t.Parallel()
	s := start(t, "registers")
	s.checkpoint(plainest)
	s.release()
	opts := lazily // a fill may be ahead of all faults
	opts.Trace = trace.New(time.Now(), "lazyrestore", "restore")
	s.restore(opts)
	stats := s.proc
	s.well()
	rows := readTrace(t, opts.Trace)

	restore := rows.find(t, "restore", "restore")
	runs := rows.find(t, "restore", "the process runs")
	planned := rows.find(t, "restore", "plan the program")
	wait := rows.find(t, "restore", "wait for the process to build itself")
	if planned.Start < restore.Start || wait.Start < planned.end() || runs.Start < wait.end() {
		t.Errorf("out of order: %+v, %+v, %+v, %+v", restore, planned, wait, runs)
	}
	before := planned.end()
	for _, part := range []string{"memory", "userfaultfd", "process", "descriptors", "threads", "last"} {
		p := rows.find(t, "builds itself", part)
		const rounding = 0.01 // µs, of sums of floating-point numbers
		if p.Start < before-rounding || p.end() > wait.end()+rounding {
			t.Errorf("%s from %v to %v, want it after %v and before %v", part, p.Start, p.end(), before, wait.end())
		}
		before = p.end()
	}
	if !slices.ContainsFunc(rows["builds itself"], func(e traceEvent) bool { return e.Name == "map" && e.Args.Step != "" && e.Dur > 0 }) {
		t.Error("no call that maps anything")
	}
	threads := 0
	for name, events := range rows {
		if strings.HasPrefix(name, "thread ") && strings.HasSuffix(name, " builds itself") && len(events) > 0 {
			threads++
		}
	}
	if want := stats.Result().Threads - 1; threads != want {
		t.Errorf("%d threads built themselves, want %d", threads, want)
	}
	rows.checkFaults(t, stats.Stats())
}

// checkFaults compares the faults of a trace, and their stages, with what was counted.
func (rt restoreTrace) checkFaults(t *testing.T, stats lazyrestore.Stats) {
	t.Helper()
	if stats.Stages == nil {
		t.Fatal("no stages were counted")
	}
	faults := 0
	var whole float64
	for _, events := range rt {
		for _, e := range events {
			if e.Name == "fault" {
				faults++
				whole += e.Dur + float64(e.Args.Cut)/1e3
			}
		}
	}
	s := stats.Stages
	parts := (s.Queue.MeanMicros + s.Fetch.MeanMicros + s.Decode.MeanMicros + s.Copy.MeanMicros) * float64(faults)
	// The last faults may belong to a process that has ended.
	if faults == 0 || uint64(faults) > stats.Faults {
		t.Errorf("%d faults were recorded, %d counted", faults, stats.Faults)
	}
	if math.Abs(whole-parts) > 0.01*whole+float64(faults)*0.01 {
		t.Errorf("the faults took %v µs, their stages %v", whole, parts)
	}
}

// Without anybody asking nothing is counted.
func TestNoStages(t *testing.T) {
	t.Parallel()
	s := start(t, "look")
	s.cycle(plainest, filling)
	s.release()
	p := s.proc
	s.well()
	if stages := p.Stats().Stages; stages != nil {
		t.Errorf("stages %+v, want none", stages)
	}
}
