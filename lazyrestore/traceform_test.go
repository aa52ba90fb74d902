package lazyrestore_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"testing"
)

// What the Trace Event Format asks of a file in its object form, and what
// chrome://tracing and ui.perfetto.dev need besides to show it as it is meant.

// A tracePlace is a row: a thread of a process.
type tracePlace struct{ PID, TID int }

// A formEvent is an event with all that the format lets it have.
type formEvent struct {
	Phase string                     `json:"ph"`
	Name  string                     `json:"name"`
	PID   *int                       `json:"pid"`
	TID   *int                       `json:"tid"`
	Start *float64                   `json:"ts"`
	Dur   *float64                   `json:"dur"`
	Scope string                     `json:"s"`
	Args  map[string]json.RawMessage `json:"args"`
}

// fault says what is wrong with one event alone, "" if nothing is.
func (e *formEvent) fault() string {
	switch {
	case e.Name == "" || e.PID == nil || e.TID == nil:
		return "it has no name, or no place"
	case e.Phase == "M":
		return ""
	case e.Start == nil || *e.Start < 0 || math.IsInf(*e.Start, 0):
		return "it is at no time"
	}
	switch e.Phase {
	case "X":
		if e.Dur == nil || *e.Dur < 0 {
			return "it does not take any time"
		}
	case "i":
		if !slices.Contains([]string{"g", "p", "t"}, e.Scope) {
			return "its scope is none of g, p, t"
		}
	case "C":
		for _, value := range e.Args {
			var number float64
			if json.Unmarshal(value, &number) != nil {
				return "it counts no number"
			}
		}
		if len(e.Args) == 0 {
			return "it counts nothing"
		}
	default:
		return "its kind is unknown"
	}
	return ""
}

// crossings are the spans of a row that neither follow nor contain one another,
// which no picture of it could show. Times are in microseconds, to three places.
func crossings(spans []formEvent) (list []string) {
	slices.SortStableFunc(spans, func(a, b formEvent) int {
		switch {
		case *a.Start < *b.Start, *a.Start == *b.Start && *a.Dur > *b.Dur:
			return -1
		case *a.Start == *b.Start && *a.Dur == *b.Dur:
			return 0
		}
		return 1
	})
	const rounding = 0.002
	end := func(e *formEvent) float64 { return *e.Start + *e.Dur }
	var open []*formEvent
	for i := range spans {
		e := &spans[i]
		for len(open) > 0 && end(open[len(open)-1]) <= *e.Start+rounding {
			open = open[:len(open)-1]
		}
		if n := len(open); n > 0 && end(e) > end(open[n-1])+rounding {
			list = append(list, fmt.Sprintf("%s from %v to %v, %s from %v to %v",
				open[n-1].Name, *open[n-1].Start, end(open[n-1]), e.Name, *e.Start, end(e)))
		}
		open = append(open, e)
	}
	return list
}

// wellFormed holds a trace against the format.
func wellFormed(t *testing.T, text []byte) {
	t.Helper()
	var file struct {
		Unit   string            `json:"displayTimeUnit"`
		Other  map[string]string `json:"otherData"`
		Events []formEvent       `json:"traceEvents"`
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&file); err != nil {
		t.Fatalf("the trace: %v", err)
	}
	if d.More() || file.Unit != "ns" && file.Unit != "ms" {
		t.Errorf("more than one object, or unit %q", file.Unit)
	}
	named, spans := map[tracePlace]bool{}, map[tracePlace][]formEvent{}
	for i := range file.Events {
		e := &file.Events[i]
		if why := e.fault(); why != "" {
			t.Fatalf("event %d, %q of kind %q: %s", i, e.Name, e.Phase, why)
		}
		at := tracePlace{*e.PID, *e.TID}
		switch {
		case e.Phase == "M" && e.Name == "thread_name":
			if named[at] {
				t.Errorf("row %v has two names", at)
			}
			named[at] = true
		case e.Phase != "M" && !named[at]:
			t.Fatalf("event %d, %q, is on row %v, which has no name", i, e.Name, at)
		case e.Phase == "X":
			spans[at] = append(spans[at], *e)
		}
	}
	for at, row := range spans {
		if crossed := crossings(row); len(crossed) > 0 {
			t.Errorf("row %v: %d spans cross, first %s", at, len(crossed), crossed[0])
		}
	}
}
