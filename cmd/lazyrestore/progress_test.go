package main

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/lazyrestore/lazyrestore/lazyrestore"
)

// at has a meter show progress at the times given, one every 100 ms.
func at(style progressStyle, columns int, steps ...lazyrestore.Progress) string {
	var b strings.Builder
	now := time.Unix(1000, 0)
	m := &meter{w: &b, style: style, columns: columns, now: func() time.Time { return now }}
	for _, p := range steps {
		m.show(p)
		now = now.Add(100 * time.Millisecond)
	}
	return b.String()
}

// last is what is on the screen after all.
func last(text string) string { return text[strings.LastIndex(text, "\x1b[K")+len("\x1b[K"):] }

func TestMeterShowsThePager(t *testing.T) {
	const total = 1000 << 20
	var steps []lazyrestore.Progress
	for i := range 21 { // 2 s
		steps = append(steps, lazyrestore.Progress{
			Phase: "fill", Done: uint64(i) * total / 100, Total: total,
			Pager: &lazyrestore.Stats{Faults: uint64(i) * 120, FaultP50Micros: 14.32, FaultMaxMicros: 2106},
		})
	}
	for _, tt := range []struct {
		name    string
		columns int
		change  func(*lazyrestore.Progress)
		want    string
	}{
		{"all", 200, nil, "fill 20 % 200 MiB of 1000 MiB, 100 MiB/s, 8s left, 1200 faults/s, median 14 µs, worst 2.1 ms ["},
		{"narrow", 60, nil, "fill 20 % 200 MiB of 1000 MiB, 100 MiB/s, 8s left, 1200 faults/s, median"[:59]},
		{"no faults", 200, func(p *lazyrestore.Progress) { p.Pager = &lazyrestore.Stats{} }, "fill 20 % 200 MiB of 1000 MiB, 100 MiB/s, 8s left ["},
		{"no pager", 200, func(p *lazyrestore.Progress) { p.Pager = nil }, "fill 20 % 200 MiB of 1000 MiB, 100 MiB/s, 8s left ["},
		{"outage", 200, func(p *lazyrestore.Progress) { p.Pager = &lazyrestore.Stats{OutageMS: 12_345} }, "fill 20 % 200 MiB of 1000 MiB, 100 MiB/s, NOTHING COMES FOR 12.3 s ["},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var own []lazyrestore.Progress
			for _, p := range steps {
				if tt.change != nil {
					tt.change(&p)
				}
				own = append(own, p)
			}
			got := last(at(progressBar, tt.columns, own...))
			if !strings.HasPrefix(got, tt.want) {
				t.Errorf("shown: %q\nwant:  %q", got, tt.want)
			}
			if n := utf8.RuneCountInString(got); n >= tt.columns {
				t.Errorf("%d columns of %d", n, tt.columns)
			}
		})
	}
}

func TestMeterPlain(t *testing.T) {
	var steps []lazyrestore.Progress
	for i := range 101 { // 10 s
		steps = append(steps, lazyrestore.Progress{Phase: "fill", Done: uint64(i), Total: 100})
	}
	if got := at(progressPlain, 80, steps...); strings.Count(got, "\n") != 2 {
		t.Errorf("in ten seconds:\n%s", got)
	}
}
