package pager

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Every frame is handed out once, whatever is touched and claimed meanwhile,
// and those given back once more.
func TestOrderHandsOutEachFrameOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		frames := rapid.IntRange(0, 200).Draw(t, "frames")
		o := newOrder(frames)
		got := make([]int, frames)
		want := slices.Repeat([]int{1}, frames)
		for frames > 0 && rapid.IntRange(0, 20).Draw(t, "go on") > 0 {
			f := rapid.IntRange(0, frames-1).Draw(t, "frame")
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0:
				o.touch(f)
			case 1:
				if o.claim(f) {
					got[f]++
				}
			case 2:
				if got[f] > 0 && got[f] == want[f] {
					o.giveBack(f)
					want[f]++
				}
			case 3:
				first, n := o.next(rapid.IntRange(1, 8).Draw(t, "limit"))
				for i := range n {
					got[first+i]++
				}
			}
		}
		for {
			first, n := o.next(4)
			if n == 0 {
				break
			}
			for i := range n {
				got[first+i]++
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("frames handed out %v times, want %v", got, want)
		}
	})
}

// The background runs ahead of a line of faults.
func TestOrderFollowsLines(t *testing.T) {
	for _, stride := range []int{1, 3, -1, -5, 31} {
		o := newOrder(10000)
		f := 5000
		for range 4 {
			o.claim(f)
			o.touch(f)
			f += stride
		}
		ahead := 0
		for range 8 {
			first, n := o.next(1)
			if n != 1 {
				t.Fatal("no frame is free")
			}
			if first == f {
				f += stride
				ahead++
			}
		}
		if ahead != 8 {
			t.Errorf("stride %d: %d of 8 frames are those touched next", stride, ahead)
		}
	}
}

// What lies ahead of a thread that goes down is handed out in large pieces, too.
func TestOrderGoesDown(t *testing.T) {
	o := newOrder(1000)
	for f := 500; f > 490; f-- {
		o.claim(f)
		o.touch(f)
	}
	if first, n := o.next(8); first != 483 || n != 8 {
		t.Errorf("%d frames from %d on, want 8 from 483 on", n, first)
	}
}

// Lines that take turns are told apart.
func TestOrderFollowsSeveralLines(t *testing.T) {
	o := newOrder(10000)
	lines := []int{1000, 4000, 8000}
	for k := range 4 {
		for _, start := range lines {
			o.claim(start + 2*k)
			o.touch(start + 2*k)
		}
	}
	var got []int
	for range 9 {
		first, _ := o.next(1)
		got = append(got, first)
	}
	for _, start := range lines {
		if !slices.Contains(got, start+8) {
			t.Errorf("the line from %d on is not followed: %v", start, got)
		}
	}
}

func TestHistogram(t *testing.T) {
	var h histogram
	if got := h.quantile(0.5); got != 0 {
		t.Errorf("quantile of nothing = %v", got)
	}
	r := rand.New(rand.NewPCG(1, 2))
	var all []time.Duration
	for range 10000 {
		d := time.Duration(r.ExpFloat64() * 1e5)
		all = append(all, d)
		h.add(d)
	}
	slices.Sort(all)
	for _, q := range []float64{0.01, 0.5, 0.9, 0.99} {
		want := all[int(q*float64(len(all)))]
		if got := h.quantile(q); got < want || float64(got) > float64(want)*1.07 {
			t.Errorf("quantile %v = %v, want %v", q, got, want)
		}
	}
	h.add(1<<63 - 1)
	h.add(-1)
}

func TestBitset(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 200).Draw(t, "n")
		b := newBitset(n)
		want := make([]bool, n)
		for range rapid.IntRange(0, 10).Draw(t, "steps") {
			i := rapid.IntRange(0, n).Draw(t, "i")
			j := rapid.IntRange(i, n).Draw(t, "j")
			changed := 0
			for k := i; k < j; k++ {
				if !want[k] {
					want[k] = true
					changed++
				}
			}
			if got := b.setRange(i, j); got != changed {
				t.Fatalf("setRange(%d, %d) = %d, want %d", i, j, got, changed)
			}
		}
		i := rapid.IntRange(0, n).Draw(t, "from")
		j := rapid.IntRange(i, n).Draw(t, "to")
		next := func(v bool) int {
			for k := i; k < j; k++ {
				if want[k] == v {
					return k
				}
			}
			return j
		}
		if got := b.nextClear(i, j); got != next(false) {
			t.Fatalf("nextClear(%d, %d) = %d, want %d", i, j, got, next(false))
		}
		if got := b.nextSet(i, j); got != next(true) {
			t.Fatalf("nextSet(%d, %d) = %d, want %d", i, j, got, next(true))
		}
	})
}
