package plot_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strings"
	"testing"

	"github.com/lazyrestore/lazyrestore/bench/plot"
)

// parses is an error unless the text is well-formed XML; it gives all text in it.
func parses(text string) (words string, err error) {
	var all strings.Builder
	for d := xml.NewDecoder(strings.NewReader(text)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return all.String(), nil
		}
		if err != nil {
			return "", err
		}
		if data, ok := token.(xml.CharData); ok {
			all.Write(data)
			all.WriteByte('\n')
		}
	}
}

func TestSVG(t *testing.T) {
	tests := []struct {
		name string
		plot plot.Plot
		want []string
	}{
		{
			"log axes",
			plot.Plot{
				Title: "time & memory <x>",
				X:     plot.Axis{Label: "memory", Unit: plot.Bytes, Log: true},
				Y:     plot.Axis{Label: "time", Unit: plot.Nanoseconds, Log: true},
				Lines: []plot.Line{
					{Name: "lazy", Points: []plot.Point{{X: 64 << 20, Y: 3e6, Low: 2.5e6, High: 4e6}, {X: 4 << 30, Y: 4e6}}},
					{Name: "eager", Points: []plot.Point{{X: 64 << 20, Y: 5e7}, {X: 4 << 30, Y: 3e9}}},
				},
			},
			[]string{"64 MiB", "1 GiB", "10 ms", "1 s", "lazy", "eager", "time & memory <x>"},
		},
		{
			"one point",
			plot.Plot{Lines: []plot.Line{{Name: "a", Points: []plot.Point{{X: 1, Y: 1}}}}},
			[]string{"a"},
		},
		{"nothing", plot.Plot{Title: "empty"}, []string{"empty"}},
		{
			"no numbers",
			plot.Plot{Y: plot.Axis{Log: true}, Lines: []plot.Line{{Name: "a", Points: []plot.Point{{X: math.NaN(), Y: -1}}}}},
			[]string{"a"},
		},
		{
			"bars",
			plot.Plot{
				X:    plot.Axis{Unit: plot.Nanoseconds},
				Bars: []plot.Bar{{Name: "lz4", Parts: []plot.Part{{Name: "fetch", Value: 2000}, {Name: "decode", Value: 6500}}}},
			},
			[]string{"lz4", "fetch", "decode", "8.5 µs"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var file bytes.Buffer
			if err := tt.plot.WriteSVG(&file); err != nil {
				t.Fatal(err)
			}
			words, err := parses(file.String())
			if err != nil {
				t.Fatalf("%v in\n%s", err, &file)
			}
			for _, want := range tt.want {
				if !strings.Contains(words, want) {
					t.Errorf("no %q in %q", want, words)
				}
			}
			if _, err := parses(tt.plot.SVG()); err != nil {
				t.Errorf("inside a page: %v", err)
			}
		})
	}
}

func TestFormat(t *testing.T) {
	tests := []struct {
		unit  plot.Unit
		value float64
		want  string
	}{
		{plot.Nanoseconds, 950, "950 ns"},
		{plot.Nanoseconds, 1500, "1.5 µs"},
		{plot.Nanoseconds, 3.14159e6, "3.14 ms"},
		{plot.Nanoseconds, 2e9, "2 s"},
		{plot.Bytes, 256 << 20, "256 MiB"},
		{plot.Bytes, 3 << 29, "1.5 GiB"},
		{plot.Share, 0.995, "99.5 %"},
		{plot.Count, 4000, "4000"},
	}
	for _, tt := range tests {
		if got := tt.unit.Format(tt.value); got != tt.want {
			t.Errorf("%v in %s is %q, want %q", tt.value, tt.unit, got, tt.want)
		}
	}
}
