package plot

import (
	"math"
	"strconv"
	"time"
)

// A scale maps values to coordinates from lo to hi, which are pixels.
type scale struct {
	axis     Axis
	min, max float64
	lo, hi   float64
}

// scaleOf takes in all the values, and zero where the axis is linear.
func scaleOf(axis Axis, values []float64, lo, hi float64) scale {
	s := scale{axis: axis, min: math.Inf(1), max: math.Inf(-1), lo: lo, hi: hi}
	for _, v := range values {
		if math.IsNaN(v) || math.IsInf(v, 0) || axis.Log && v <= 0 {
			continue
		}
		s.min, s.max = min(s.min, v), max(s.max, v)
	}
	if s.min > s.max {
		s.min, s.max = 1, 10
	}
	if !axis.Log {
		s.min = min(s.min, 0)
		if s.max == s.min {
			s.max = s.min + 1
		}
		if axis.Unit == Share {
			s.max = max(s.max, 1)
		}
		return s
	}
	if s.max/s.min < 4 { // a flat curve is to look flat
		middle := math.Sqrt(s.min * s.max)
		s.min, s.max = middle/2, middle*2
	}
	s.min, s.max = s.min/1.15, s.max*1.15
	return s
}

func (s *scale) at(v float64) float64 {
	if s.axis.Log {
		if v <= 0 {
			return s.lo
		}
		return s.lo + (s.hi-s.lo)*math.Log(v/s.min)/math.Log(s.max/s.min)
	}
	return s.lo + (s.hi-s.lo)*(v-s.min)/(s.max-s.min)
}

// ticks are values worth a line, no more than about most.
func (s *scale) ticks(most int) []float64 {
	switch {
	case s.axis.Log && s.axis.Unit == Bytes:
		return s.powers(most)
	case s.axis.Log:
		return s.decades(most)
	}
	step := niceStep((s.max-s.min)/float64(most), s.axis.Unit == Bytes)
	var all []float64
	for i := math.Ceil(s.min / step); i*step <= s.max*(1+1e-9); i++ {
		all = append(all, i*step)
	}
	return all
}

// powers of two, as memory comes.
func (s *scale) powers(most int) []float64 {
	first, last := int(math.Ceil(math.Log2(s.min))), int(math.Floor(math.Log2(s.max)))
	every := max(1, (last-first+most)/most)
	var all []float64
	for i := first; i <= last; i += every {
		all = append(all, math.Exp2(float64(i)))
	}
	return all
}

// decades, with 2 and 5 between them where there is room.
func (s *scale) decades(most int) []float64 {
	for _, steps := range [][]float64{{1, 2, 5}, {1, 3}, {1}} {
		var all []float64
		for d := math.Floor(math.Log10(s.min)); d <= math.Log10(s.max); d++ {
			for _, m := range steps {
				if v := m * math.Pow(10, d); v >= s.min && v <= s.max {
					all = append(all, v)
				}
			}
		}
		if len(all) <= most+1 || len(steps) == 1 {
			return all
		}
	}
	return nil
}

// niceStep is the next of 1, 2, 5 times a power of ten, or a power of two.
func niceStep(rough float64, binary bool) float64 {
	if binary {
		return math.Exp2(math.Ceil(math.Log2(rough)))
	}
	power := math.Pow(10, math.Floor(math.Log10(rough)))
	for _, m := range []float64{1, 2, 5, 10} {
		if m*power >= rough*(1-1e-9) {
			return m * power
		}
	}
	return 10 * power
}

// Format writes a value in its unit, with up to three digits.
func (u Unit) Format(v float64) string {
	switch u {
	case Nanoseconds:
		return formatTime(time.Duration(math.Round(v)))
	case Bytes:
		for _, step := range []struct {
			size float64
			name string
		}{{1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
			if v >= step.size {
				return digits(v/step.size) + " " + step.name
			}
		}
		return digits(v) + " B"
	case Share:
		return digits(100*v) + " %"
	case Count:
	}
	return digits(v)
}

func formatTime(d time.Duration) string {
	switch {
	case d >= time.Second:
		return digits(d.Seconds()) + " s"
	case d >= time.Millisecond:
		return digits(float64(d)/1e6) + " ms"
	case d >= time.Microsecond:
		return digits(float64(d)/1e3) + " µs"
	}
	return digits(float64(d)) + " ns"
}

// digits writes three significant ones, and no zeros for show.
func digits(v float64) string {
	if math.Abs(v) >= 1000 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	rounded, _ := strconv.ParseFloat(strconv.FormatFloat(v, 'g', 3, 64), 64)
	return strconv.FormatFloat(rounded, 'f', -1, 64)
}
