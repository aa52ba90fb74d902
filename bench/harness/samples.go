package harness

import (
	"math"
	"slices"
)

// A Series is what one subject gave, a value a round.
type Series struct {
	// Name is the subject's, with what it restored where that differs.
	Name string
	// Measure is what was measured of it, where several things were.
	Measure string
	// Detail says that the terminal's table leaves it out.
	Detail bool
	// Unit is one of benchstat's: ns/op, B/s, B.
	Unit   string
	Values []float64
	// Err is why there are no more of them.
	Err error
}

func (s *Series) add(v float64) { s.Values = append(s.Values, v) }

// Median is the middle of the values, the mean of the two in the middle of an
// even number, NaN of none.
func (s *Series) Median() float64 { return median(s.Values) }

// Spread is the first and the third quartile.
func (s *Series) Spread() (low, high float64) {
	return quantile(s.Values, 0.25), quantile(s.Values, 0.75)
}

func median(values []float64) float64 { return quantile(values, 0.5) }

// quantile interpolates between the two values next to it.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	at := q * float64(len(sorted)-1)
	below := int(at)
	above := min(below+1, len(sorted)-1)
	return sorted[below] + (at-float64(below))*(sorted[above]-sorted[below])
}

// ratios divides round by round.
func ratios(over, under *Series) []float64 {
	n := min(len(over.Values), len(under.Values))
	all := make([]float64, 0, n)
	for i := range n {
		all = append(all, over.Values[i]/under.Values[i])
	}
	return all
}
