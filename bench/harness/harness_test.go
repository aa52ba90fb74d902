package harness

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestQuantile(t *testing.T) {
	tests := []struct {
		name   string
		values []float64
		q      float64
		want   float64
	}{
		{"odd", []float64{3, 1, 2}, 0.5, 2},
		{"even", []float64{4, 1, 3, 2}, 0.5, 2.5},
		{"one", []float64{7}, 0.75, 7},
		{"first quartile", []float64{1, 2, 3, 4, 5}, 0.25, 2},
		{"largest", []float64{1, 9, 5}, 1, 9},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := quantile(test.values, test.q); got != test.want {
				t.Errorf("quantile(%v, %v) = %v, want %v", test.values, test.q, got, test.want)
			}
		})
	}
	if got := median(nil); !math.IsNaN(got) {
		t.Errorf("median of nothing = %v, want NaN", got)
	}
}

// A size that is nearly the largest is not one of its own.
func TestGrowthSizes(t *testing.T) {
	for most, want := range map[int][]int{
		64:    {64},
		100:   {100},
		256:   {64, 256},
		1000:  {64, 256, 1000},
		5440:  {64, 256, 1024, 5440},
		8192:  {64, 256, 1024, 4096, 8192},
		16384: {64, 256, 1024, 4096, 16384},
	} {
		if diff := cmp.Diff(want, growthSizes(most)); diff != "" {
			t.Errorf("growthSizes(%d) (-want +got):\n%s", most, diff)
		}
	}
}

// A row of which not all was measured equally often says so.
func TestRuns(t *testing.T) {
	r := &Result{}
	r.measure("a", "64 MiB", "ns/op").Values = []float64{1, 2, 3}
	r.measure("a", "4096 MiB", "ns/op").Values = []float64{1}
	r.measure("a", "failed", "ns/op")
	r.measure("b", "64 MiB", "ns/op").Values = []float64{1, 2}
	r.detail("b", "cpu", "ns/op").Values = []float64{1}
	r.measure("c", "64 MiB", "ns/op")
	for subject, want := range map[string]string{"a": "1 - 3", "b": "2", "c": "0"} {
		if got := r.Runs(subject); got != want {
			t.Errorf("Runs(%q) = %s, want %s", subject, got, want)
		}
	}
}

func TestVerdict(t *testing.T) {
	higher := &Figure{Bound: 3, Aim: 5, Higher: true}
	lower := &Figure{Bound: 1.3, Aim: 1.05}
	tests := []struct {
		name   string
		result *Result
		want   string
	}{
		{"higher, beyond the aim", &Result{Figure: higher, Value: 6}, "aim"},
		{"higher, between", &Result{Figure: higher, Value: 3}, "ok"},
		{"higher, below", &Result{Figure: higher, Value: 2.99}, "MISSED"},
		{"lower, beyond the aim", &Result{Figure: lower, Value: 1}, "aim"},
		{"lower, between", &Result{Figure: lower, Value: 1.3}, "ok"},
		{"lower, above", &Result{Figure: lower, Value: 1.31}, "MISSED"},
		{"no value", &Result{Figure: lower, Value: math.NaN()}, "failed"},
		{"error", &Result{Figure: lower, Value: 1, Err: errors.New("x")}, "failed"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := test.result.Verdict(); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// The ratio is that of the medians; its spread is over the rounds.
func TestDivide(t *testing.T) {
	over := &Series{Values: []float64{10, 20, 90}}
	under := &Series{Values: []float64{5, 10, 10}}
	r := (&Result{}).divide(over, under)
	if r.Value != 2 || r.Low != 2 || r.High != 5.5 {
		t.Errorf("value %v, quartiles %v and %v, want 2, 2 and 5.5", r.Value, r.Low, r.High)
	}
}

func TestFirstStamp(t *testing.T) {
	ring := filepath.Join(t.TempDir(), "stamp")
	var text []byte
	// The ring has wrapped: new readings stand before old ones.
	for _, at := range []uint64{500, 510, 520, 100, 110, 0} {
		text = binary.LittleEndian.AppendUint64(text, at)
	}
	if err := os.WriteFile(ring, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for after, want := range map[int64]int64{0: 100, 110: 500, 505: 510, 520: 0} {
		got, err := firstStamp(ring, time.Unix(0, after))
		if err != nil {
			t.Fatal(err)
		}
		if want == 0 && !got.IsZero() || want != 0 && got.UnixNano() != want {
			t.Errorf("after %d: %v, want %d", after, got, want)
		}
	}
	if _, err := firstStamp(ring+"-none", time.Time{}); err == nil {
		t.Error("no error for a ring that is not there")
	}
}

func TestLines(t *testing.T) {
	const text = "ready\ntouches n=3 mean_ns=14 median_ns=12\nsweep bytes=4"
	line, ok := lineOf(text, "touches")
	if !ok {
		t.Fatal("no line")
	}
	want := map[string]int64{"n": 3, "mean_ns": 14, "median_ns": 12}
	if diff := cmp.Diff(want, numbers(line)); diff != "" {
		t.Errorf("numbers (-want +got):\n%s", diff)
	}
	// A line that is still being written is not there yet.
	if line, ok := lineOf(text, "sweep"); ok {
		t.Errorf("unfinished line %q", line)
	}
}

// A clock that is set in the middle must not become a result.
func TestClockPair(t *testing.T) {
	start := clockPair{wall: time.Hour, steady: time.Minute}
	if err := start.sameAs(clockPair{time.Hour + time.Second, time.Minute + time.Second}); err != nil {
		t.Errorf("both ran alike: %v", err)
	}
	if err := start.sameAs(clockPair{time.Hour + 2*time.Second, time.Minute + time.Second}); err == nil {
		t.Error("the wall clock was set by a second: no error")
	}
}

// One that fails keeps its reason and its place; the others go on. The order
// is reversed every other time.
func TestRounds(t *testing.T) {
	env := &Env{opts: Options{Log: &strings.Builder{}}}
	var order strings.Builder
	turnNamed := func(name string, fail int) *turn {
		s := &Series{Name: name}
		return &turn{series: s, sample: func(context.Context) (float64, error) {
			order.WriteString(name)
			if len(s.Values) == fail {
				return 0, errors.New("broken")
			}
			return 1, nil
		}}
	}
	a, b, c := turnNamed("a", -1), turnNamed("b", 1), turnNamed("c", -1)
	env.rounds(t.Context(), 3, a, nil, b, c)
	if got, want := order.String(), "abc"+"cba"+"ac"; got != want {
		t.Errorf("order %q, want %q", got, want)
	}
	if a.series.Err != nil || len(a.series.Values) != 3 || b.series.Err == nil || len(b.series.Values) != 1 {
		t.Errorf("series %+v and %+v", a.series, b.series)
	}
}

// A sample during which the clock was set is taken again, but not for ever; any other error is the last word.
func TestClockIsSetDuringSamples(t *testing.T) {
	env := &Env{opts: Options{Log: &strings.Builder{}}}
	for _, tt := range []struct {
		times int // that it is set
		want  int // samples
	}{{0, 2}, {1, 2}, {clockTries - 1, 2}, {clockTries, 0}} {
		left, s := tt.times, &Series{Name: "a"}
		env.rounds(t.Context(), 2, &turn{series: s, sample: func(context.Context) (float64, error) {
			if left--; left >= 0 {
				return 0, fmt.Errorf("it: %w", clockPair{}.sameAs(clockPair{wall: time.Second}))
			}
			return 1, nil
		}})
		if len(s.Values) != tt.want || (s.Err == nil) != (tt.want == 2) {
			t.Errorf("set %d times: %d samples, %v", tt.times, len(s.Values), s.Err)
		}
	}
}

func TestFiguresAreSound(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range Figures() {
		if seen[f.Name] || f.Title == "" || f.measure == nil || f.Limit == 0 {
			t.Errorf("figure %q is not whole or not alone", f.Name)
		}
		seen[f.Name] = true
		if !f.kept(f.Aim, f.Bound) {
			t.Errorf("%s: the aim %v does not keep the bound %v", f.Name, f.Aim, f.Bound)
		}
	}
}

func TestOutputIsBenchmarkFormat(t *testing.T) {
	r := &Result{
		Figure: &Figure{Name: "ttfi-size", Title: "x", Bound: 3, Aim: 5, Higher: true},
		Series: []*Series{{Name: "ours-lazy", Unit: "ns/op", Values: []float64{3.1e6, 3.2e6}}},
		Value:  4, Low: 3.5, High: 4.5,
		Beside: []Ratio{{"again", 2, 1.75, math.NaN()}},
	}
	var samples strings.Builder
	r.Samples(&samples)
	want := "BenchmarkTtfiSize/subject=ours-lazy\t1\t3.1e+06 ns/op\n" +
		"BenchmarkTtfiSize/subject=ours-lazy\t1\t3.2e+06 ns/op\n"
	if diff := cmp.Diff(want, samples.String()); diff != "" {
		t.Errorf("samples (-want +got):\n%s", diff)
	}
	var table strings.Builder
	if err := Table(&table, []*Result{r}); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"ttfi-size", "4.00", "3.50 - 4.50", "ok", "3.15 ms", "ttfi-size-again  2.00   1.75 - -"} {
		if !strings.Contains(table.String(), part) {
			t.Errorf("no %q in the table:\n%s", part, table.String())
		}
	}
	text, err := json.Marshal(r)
	if want := `"beside":[{"name":"again","value":2,"first_quartile":1.75}]`; err != nil || !strings.Contains(string(text), want) {
		t.Errorf("%v; no %s in %s", err, want, text)
	}
}

// Where somebody else has a counter it is said: the figures do not show it.
func TestNoteAlone(t *testing.T) {
	for _, c := range []struct {
		name string
		took []float64
		want string
	}{
		{"alone", []float64{8e6, 9e6, 22e6}, "the first takes 9.00 ms"},
		{"not alone", []float64{5e4, 5e4, 6e4}, "NOT ALONE in 3 of 3 rounds: the first counter took 50.0 µs"},
		{"not alone at times", []float64{5e4, 8e6, 9e6}, "NOT ALONE in 1 of 3 rounds: the first counter took 8.00 ms"},
		{"no counters", nil, "none to be had"},
	} {
		if got := noteAlone(&Series{Unit: "ns/op", Values: c.took}); !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q in it", c.name, got, c.want)
		}
	}
}

// What is not a descendant of ours is not touched, whatever its number.
func TestHoldDescendant(t *testing.T) {
	if h, err := holdDescendant(1); err == nil {
		t.Errorf("took hold of pid %d", h.pid)
	}
}

// What a program needs beside itself is looked at before it is checkpointed.
func TestFits(t *testing.T) {
	if err := fits(1<<30, 2<<30); err != nil {
		t.Error(err)
	}
	if err := fits(1<<30, 1<<30); err == nil || !strings.Contains(err.Error(), "--dir") {
		t.Errorf("%v, want a word about --dir", err)
	}
}

// The first row of a comparison that fails does not take the others with it.
func TestVerdictWithoutCRIU(t *testing.T) {
	r := &Result{Figure: &Figure{Bound: 3}, Err: fmt.Errorf("ttfi: %w", ErrNoCRIU)}
	if got := r.Verdict(); got != "skipped" {
		t.Errorf("verdict %q, want it skipped", got)
	}
	run := &Run{Results: []*Result{r}}
	if err := run.Failed(true); err != nil {
		t.Errorf("%v, want nothing failed", err)
	}
}

// All connections together get no more than the link carries, later.
func TestLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &lane{link: &link{bytesSecond: 1e6, delay: 10 * time.Millisecond}}
		began := time.Now()
		l.send(1000)
		last := l.send(4000)
		if took := last.Sub(began); took != 15*time.Millisecond {
			t.Errorf("5,000 bytes at 1 MB/s with a delay of 10 ms arrive after %v, want 15 ms", took)
		}
	})
}

// What goes through a link comes out as it was.
func TestLinkCarries(t *testing.T) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		conn, err := server.Accept()
		if err == nil {
			_, _ = io.Copy(conn, conn)
			conn.Close()
		}
	}()
	listener, err := (&link{name: "test", bytesSecond: 1e9, delay: time.Millisecond}).listen(server.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	want := bytes.Repeat([]byte("0123456789abcde"), 20000)
	go func() { _, _ = conn.Write(want) }()
	got := make([]byte, len(want))
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v, or other bytes than were sent", err)
	}
}

func TestSteps(t *testing.T) {
	step := regexp.MustCompile(`(?m)^step.*$`)
	ends := stepEndsIn("ready\nstep 1 end_ns=1000\nstep 2 end_ns=3000 answer 7\nstep 3 end_ns=9000\n", step)
	if len(ends) != 3 || ends[2].UnixNano() != 9000 {
		t.Errorf("steps end at %v", ends)
	}
	if got := paceOf(ends); got != 4000 {
		t.Errorf("a step takes %v, want 4µs", got)
	}
	if got := stepEndsIn("step 1\n", step); got != nil {
		t.Errorf("%v of steps that do not say when", got)
	}
}

func TestChunkBytes(t *testing.T) {
	for size, want := range map[string]float64{"64KiB": 65536, "4096": 4096, "1M": 1 << 20, "2m": 2 << 20, "x": 0, "": 0, "7Q": 0} {
		if got := chunkBytes(size); got != want {
			t.Errorf("%q is %v bytes, want %v", size, got, want)
		}
	}
}

// Parts of one name are one; one that has left since keeps what it took.
func TestCosts(t *testing.T) {
	early := []cost{{"command", 3, 10}, {"keeper", 1, 2}}
	late := joined([]cost{{"command", 5, 20}, {"server", 2, 8}, {"server", 1, 1}})
	all := withThose(late, early)
	want := []cost{{"command", 5, 20}, {"server", 3, 9}, {"keeper", 1, 2}}
	if !slices.Equal(all, want) {
		t.Errorf("parts %v, want %v", all, want)
	}
	if sum := sumOf(all); sum.cpu != 9 || sum.peak != 31 {
		t.Errorf("together %v", sum)
	}
}
