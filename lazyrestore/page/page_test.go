package page

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestRange(t *testing.T) {
	tests := []struct {
		name      string
		a, b      Range
		intersect Range
		overlaps  bool
	}{
		{"apart", Range{0, 10}, Range{20, 30}, Range{20, 10}, false},
		{"touching", Range{0, 10}, Range{10, 30}, Range{10, 10}, false},
		{"overlapping", Range{0, 15}, Range{10, 30}, Range{10, 15}, true},
		{"inside", Range{0, 50}, Range{10, 30}, Range{10, 30}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.a.Intersect(tt.b); got != tt.intersect {
				t.Errorf("Intersect = %v, want %v", got, tt.intersect)
			}
			if got := tt.a.Overlaps(tt.b); got != tt.overlaps {
				t.Errorf("Overlaps = %v, want %v", got, tt.overlaps)
			}
		})
	}
}

// A Set behaves as a map from address to bool would.
func TestSetIsASet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s Set
		var want [64]bool
		steps := rapid.IntRange(1, 40).Draw(t, "steps")
		for range steps {
			start := rapid.IntRange(0, 63).Draw(t, "start")
			end := rapid.IntRange(start, 64).Draw(t, "end")
			add := rapid.Bool().Draw(t, "add")
			r := Range{Addr(start), Addr(end)}
			if add {
				s.Add(r)
			} else {
				s.Remove(r)
			}
			for i := start; i < end; i++ {
				want[i] = add
			}
		}
		var got [64]bool
		var n uint64
		last := Range{}
		first := true
		for r := range s.All() {
			if r.Empty() || (!first && r.Start <= last.End) {
				t.Fatalf("ranges %v then %v: empty, out of order or touching", last, r)
			}
			last, first = r, false
			n += r.Len()
			for a := r.Start; a < r.End; a++ {
				got[a] = true
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("set differs (-want +got):\n%s", diff)
		}
		if s.Len() != n {
			t.Fatalf("Len = %d, want %d", s.Len(), n)
		}
		for i := range want {
			if s.Contains(Addr(i)) != want[i] {
				t.Fatalf("Contains(%d) = %v, want %v", i, !want[i], want[i])
			}
		}
		start := rapid.IntRange(0, 63).Draw(t, "within start")
		end := rapid.IntRange(start, 64).Draw(t, "within end")
		var within [64]bool
		all := true
		for r := range s.Within(Range{Addr(start), Addr(end)}) {
			for a := r.Start; a < r.End; a++ {
				within[a] = true
			}
		}
		for i := start; i < end; i++ {
			if within[i] != want[i] {
				t.Fatalf("Within: address %d is %v, want %v", i, within[i], want[i])
			}
			all = all && want[i]
		}
		if got := s.Covers(Range{Addr(start), Addr(end)}); got != all {
			t.Fatalf("Covers = %v, want %v", got, all)
		}
	})
}
