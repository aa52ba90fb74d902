package plot

import (
	"bytes"
	"fmt"
	"html"
	"io"
	"math"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	width      = 760
	bodyHeight = 330 // of the area of Lines
	left       = 84
	right      = 22
	top        = 16
	rowHeight  = 20 // of the legend
	barHeight  = 30
	bottom     = 62 // ticks and the label of X
)

// Colours are numbered; after the last they begin again, with dashes.
const colours = 12

// style is the look of an SVG. The page that it lies in has the same variables;
// alone it falls back on its own.
const style = `
.lr-plot{--lr-ink:#1c2430;--lr-dim:#5b6675;--lr-grid:#d9dee5;--lr-ground:#ffffff;
--lr-0:#0062b8;--lr-1:#c2410c;--lr-2:#047857;--lr-3:#9333a5;--lr-4:#8a6d00;--lr-5:#be123c;--lr-6:#0e7490;--lr-7:#57534e;
--lr-8:#4d7c0f;--lr-9:#7c2d12;--lr-10:#4338ca;--lr-11:#a16207;
font:13px system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif}
@media (prefers-color-scheme:dark){.lr-plot{--lr-ink:#e6ebf2;--lr-dim:#a3aebd;--lr-grid:#36404d;--lr-ground:#14191f;
--lr-0:#5eb1ff;--lr-1:#ff9a62;--lr-2:#4ade9f;--lr-3:#dd8ff0;--lr-4:#e6c34a;--lr-5:#ff8096;--lr-6:#56cfe8;--lr-7:#c0b8b0;
--lr-8:#b5e05a;--lr-9:#e2a188;--lr-10:#a5a0ff;--lr-11:#f0d58a}}
.lr-plot .ground{fill:var(--lr-ground)}
.lr-plot text{fill:var(--lr-ink)}
.lr-plot .tick,.lr-plot .dim{fill:var(--lr-dim);font-size:12px}
.lr-plot .grid{stroke:var(--lr-grid);stroke-width:1;fill:none}
.lr-plot .line{fill:none;stroke-width:2;stroke-linejoin:round}
.lr-plot .spread{stroke-width:1.2;opacity:.65}
.lr-plot .value{font-size:12px}
`

func colourRules() string {
	var b strings.Builder
	for i := range colours {
		fmt.Fprintf(&b, ".lr-plot .c%d{stroke:var(--lr-%d)} .lr-plot .f%d{fill:var(--lr-%d)}\n", i, i, i, i)
	}
	return b.String()
}

// Style is the style sheet that the plots of a page share.
func Style() string { return style + colourRules() }

// WriteSVG writes the plot as a file that stands alone.
func (p *Plot) WriteSVG(w io.Writer) error {
	_, err := io.WriteString(w, `<?xml version="1.0" encoding="UTF-8"?>`+"\n"+p.svg("<style>"+Style()+"</style>", true))
	return err
}

// SVG is the plot as an element of a page that has Style.
func (p *Plot) SVG() string { return p.svg("", false) }

// A canvas is an SVG under construction.
type canvas struct{ bytes.Buffer }

func (c *canvas) add(format string, args ...any) { fmt.Fprintf(c, format+"\n", args...) }

func (c *canvas) text(x, y float64, class, anchor, text string) {
	c.add(`<text class="%s" x="%.1f" y="%.1f" text-anchor="%s">%s</text>`, class, x, y, anchor, html.EscapeString(text))
}

func (p *Plot) svg(style string, title bool) string {
	body, height, legend := &canvas{}, 0.0, []string(nil)
	offset := 0.0
	if title {
		offset = 30
	}
	if len(p.Bars) > 0 {
		height, legend = p.bars(body, offset)
	} else {
		height, legend = p.lines(body, offset)
	}
	height = p.legend(body, legend, height)

	c := &canvas{}
	c.add(`<svg xmlns="http://www.w3.org/2000/svg" class="lr-plot" viewBox="0 0 %d %.0f" role="img" aria-label="%s">`,
		width, height, html.EscapeString(p.Title))
	c.WriteString(style)
	c.add(`<rect class="ground" width="%d" height="%.0f"/>`, width, height)
	if title {
		c.add(`<text x="%d" y="22" font-weight="600" font-size="15">%s</text>`, 14, html.EscapeString(p.Title))
	}
	c.Write(body.Bytes())
	c.add(`</svg>`)
	return c.String()
}

// lines draws the curves and gives the y below the area and the names.
func (p *Plot) lines(c *canvas, offset float64) (height float64, names []string) {
	var xs, ys []float64
	for _, l := range p.Lines {
		for _, pt := range l.Points {
			xs, ys = append(xs, pt.X), append(ys, pt.Y)
			if pt.High > 0 {
				ys = append(ys, pt.Low, pt.High)
			}
		}
	}
	x := scaleOf(p.X, xs, left, width-right)
	y := scaleOf(p.Y, ys, offset+top+bodyHeight, offset+top+14)
	for _, v := range y.ticks(7) {
		c.add(`<path class="grid" d="M%d %.1fH%d"/>`, left, y.at(v), width-right)
		c.text(left-8, y.at(v)+4, "tick", "end", p.Y.Unit.Format(v))
	}
	p.xAxis(c, &x, offset+top, offset+top+bodyHeight)
	c.text(14, offset+top+4, "dim", "start", p.Y.Label)
	for i, l := range p.Lines {
		p.line(c, &x, &y, l.number(i), l)
		names = append(names, l.Name)
	}
	return offset + top + bodyHeight + bottom, names
}

// number is that of a line's colour; i is its place.
func (l *Line) number(i int) int {
	if l.Colour > 0 {
		return l.Colour - 1
	}
	return i
}

func (p *Plot) line(c *canvas, x, y *scale, i int, l Line) {
	var path strings.Builder
	for k, pt := range l.Points {
		px, py := x.at(pt.X), y.at(pt.Y)
		switch {
		case k == 0:
			fmt.Fprintf(&path, "M%.1f %.1f", px, py)
		case l.Step:
			fmt.Fprintf(&path, "H%.1fV%.1f", px, py)
		default:
			fmt.Fprintf(&path, "L%.1f %.1f", px, py)
		}
		if pt.High > 0 {
			c.add(`<path class="spread c%d" d="M%.1f %.1fV%.1f"/>`, i%colours, px, y.at(pt.Low), y.at(pt.High))
		}
	}
	c.add(`<path class="line c%d"%s d="%s"><title>%s</title></path>`, i%colours, dashes(i), path.String(), html.EscapeString(l.Name))
	if len(l.Points) > 24 {
		return
	}
	for _, pt := range l.Points {
		c.add(`<circle class="f%d" cx="%.1f" cy="%.1f" r="3.2"><title>%s: %s, %s</title></circle>`, i%colours, x.at(pt.X), y.at(pt.Y),
			html.EscapeString(l.Name), p.X.Unit.Format(pt.X), p.Y.Unit.Format(pt.Y))
	}
}

// dashes tell apart lines whose colours are alike to some eyes.
func dashes(i int) string {
	return [...]string{"", ` stroke-dasharray="7 4"`, ` stroke-dasharray="2 3"`, ` stroke-dasharray="9 3 2 3"`}[i/2%4]
}

func (p *Plot) xAxis(c *canvas, x *scale, from, to float64) {
	last := math.Inf(-1)
	for _, v := range x.ticks(8) {
		at, text := x.at(v), p.X.Unit.Format(v)
		c.add(`<path class="grid" d="M%.1f %.1fV%.1f"/>`, at, from, to)
		half := 3.6 * float64(utf8.RuneCountInString(text))
		if at-half > last+6 && at+half < width {
			c.text(at, to+17, "tick", "middle", text)
			last = at + half
		}
	}
	c.text((left+width-right)/2, to+36, "dim", "middle", p.X.Label)
}

// bars draws stacked bars and gives the y below them and the names of the parts.
func (p *Plot) bars(c *canvas, offset float64) (height float64, names []string) {
	number := map[string]int{}
	most, label := 0.0, 0
	for _, b := range p.Bars {
		sum := 0.0
		for _, part := range b.Parts {
			if _, seen := number[part.Name]; !seen {
				number[part.Name] = len(names)
				names = append(names, part.Name)
			}
			sum += part.Value
		}
		most, label = max(most, sum), max(label, utf8.RuneCountInString(b.Name))
	}
	start := float64(14 + min(max(8*label, 60), 260))
	x := scaleOf(p.X, []float64{most * 1.12}, start, width-right)
	end := offset + top + float64(barHeight*len(p.Bars))
	p.xAxis(c, &x, offset+top-6, end)
	for i, b := range p.Bars {
		y, sum := offset+top+float64(i*barHeight), 0.0
		c.text(start-8, y+18, "", "end", b.Name)
		for _, part := range b.Parts {
			from, to := x.at(sum), x.at(sum+part.Value)
			sum += part.Value
			c.add(`<rect class="f%d" x="%.1f" y="%.1f" width="%.2f" height="%d"><title>%s: %s</title></rect>`, number[part.Name]%colours,
				from, y+4, max(to-from, 0), barHeight-10, html.EscapeString(part.Name), p.X.Unit.Format(part.Value))
		}
		c.text(x.at(sum)+5, y+18, "value", "start", p.X.Unit.Format(sum))
	}
	return end + bottom, names
}

// legend names the colours below the picture and gives the y below it.
func (p *Plot) legend(c *canvas, names []string, y float64) float64 {
	x := float64(left)
	for i, name := range names {
		w := 40 + textWidth(name)
		if x+w > width-right && x > left {
			x, y = left, y+rowHeight
		}
		if len(p.Bars) > 0 {
			c.add(`<rect class="f%d swatch" x="%.1f" y="%.1f" width="18" height="10"/>`, i%colours, x, y-9)
		} else {
			n := p.Lines[i].number(i)
			c.add(`<path class="line c%d swatch"%s d="M%.1f %.1fh18"/>`, n%colours, dashes(n), x, y-4)
		}
		c.text(x+24, y, "", "start", name)
		x += w
	}
	return y + 14
}

// textWidth is about what a text of the legend takes in the wider of the fonts
// that it may be shown in.
func textWidth(text string) (w float64) {
	for _, r := range text {
		switch {
		case strings.ContainsRune("mwMW", r):
			w += 12.7
		case strings.ContainsRune("ijlI |.,:'", r):
			w += 4.5
		case unicode.IsUpper(r):
			w += 9.5
		default:
			w += 8.3
		}
	}
	return w
}
