package pager

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/trace"
)

// The faults of a thread lie one after the other in a trace, in whatever order
// they are recorded, and however late who woke it came to look at the clock.
func TestFaultsOfAThreadDoNotCross(t *testing.T) {
	for range 50 {
		rec := trace.New(time.Now(), "p", "t")
		w := &stopwatch{session: &session{trace: rec}}
		starts := []int64{1000, 2000, 3000, 4000, 5000}
		for _, i := range rand.Perm(len(starts)) {
			at := starts[i]
			end := at + 500 + rand.Int64N(5000)
			w.threads.record(w, fault{tid: 7, addr: page.Size, at: at}, at+100, at+200, at+300, end)
		}
		var b bytes.Buffer
		if err := rec.Write(&b); err != nil {
			t.Fatal(err)
		}
		var file struct {
			TraceEvents []struct {
				Name    string
				TS, Dur float64
			}
		}
		if err := json.Unmarshal(b.Bytes(), &file); err != nil {
			t.Fatal(err)
		}
		var ends []float64
		for _, e := range file.TraceEvents {
			if e.Name == "fault" {
				ends = append(ends, e.TS+e.Dur)
			}
		}
		slices.Sort(ends)
		for i, end := range ends[:len(ends)-1] {
			if end > float64(starts[i+1])/1e3 {
				t.Fatalf("a fault ends at %v µs, the next has begun at %v µs", end, float64(starts[i+1])/1e3)
			}
		}
	}
}
