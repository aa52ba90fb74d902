// Package plot draws curves and bars as SVG, for the report of the benchmarks.
// An SVG stands alone or inside an HTML page, and is readable on light and on
// dark ground: colours are CSS variables, set by the viewer's preference.
package plot

// A Plot is one picture: Lines over two axes, or Bars of stacked parts.
type Plot struct {
	// Name is that of its file, without extension; Title says what is shown.
	Name  string `json:"name"`
	Title string `json:"title"`
	// Note is what a reader has to know besides, in a sentence.
	Note  string `json:"note,omitempty"`
	X     Axis   `json:"x"`
	Y     Axis   `json:"y"` // of Lines alone
	Lines []Line `json:"lines,omitempty"`
	Bars  []Bar  `json:"bars,omitempty"` // over X
}

// An Axis is what a coordinate means.
type Axis struct {
	Label string `json:"label"`
	Unit  Unit   `json:"unit"`
	Log   bool   `json:"log,omitempty"`
}

// A Unit says how the numbers on an axis are written.
type Unit string

// The units.
const (
	Nanoseconds Unit = "ns"
	Bytes       Unit = "B"
	Share       Unit = "share" // 1 is 100 %
	Count       Unit = "count"
)

// A Line is one curve.
type Line struct {
	Name   string  `json:"name"`
	Points []Point `json:"points"`
	// Colour is that number of the palette, from 1 on; 0 is by its place. What
	// is the same thing in several plots is to look the same.
	Colour int `json:"colour,omitempty"`
	// Step says that the value holds until the next point.
	Step bool `json:"step,omitempty"`
}

// A Point of a curve, with the quartiles around it where there are any.
type Point struct {
	X    float64 `json:"x"`
	Y    float64 `json:"y"`
	Low  float64 `json:"low,omitempty"`
	High float64 `json:"high,omitempty"`
}

// A Bar is parts that add up.
type Bar struct {
	Name  string `json:"name"`
	Parts []Part `json:"parts"`
}

// A Part is a piece of a bar.
type Part struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
}

// Empty reports whether there is nothing to draw.
func (p *Plot) Empty() bool {
	for _, l := range p.Lines {
		if len(l.Points) > 0 {
			return false
		}
	}
	for _, b := range p.Bars {
		if len(b.Parts) > 0 {
			return false
		}
	}
	return true
}
