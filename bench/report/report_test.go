package report_test

import (
	"encoding/json"
	"errors"
	"html"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/bench/harness"
	"github.com/lazyrestore/lazyrestore/bench/plot"
	"github.com/lazyrestore/lazyrestore/bench/report"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// sample is a run with everything that a page can show.
func sample() *harness.Run {
	line := func(name string, y float64) plot.Line {
		l := plot.Line{Name: name}
		for mib := 64.0; mib <= 4096; mib *= 4 {
			l.Points = append(l.Points, plot.Point{X: mib * (1 << 20), Y: y * mib / 64, Low: 0.8 * y * mib / 64, High: 1.2 * y * mib / 64})
		}
		return l
	}
	long := plot.Line{Name: "criu-lazy"}
	for i := range 200 {
		long.Points = append(long.Points, plot.Point{X: float64(i) * 1e6, Y: float64(i) * (1 << 20)})
	}
	bar := func(name string) plot.Bar {
		return plot.Bar{Name: name, Parts: []plot.Part{{Name: "command", Value: 1000}, {Name: "fetch", Value: 2500}, {Name: "decode", Value: 7000}, {Name: "copy", Value: 4000}}}
	}
	return &harness.Run{
		Machine: harness.Machine{CPU: "Some <Processor>", Kernel: "6.18", CRIU: "CRIU 4.1.1", Began: time.Unix(1e9, 0)},
		Took:    90 * time.Second,
		Results: []*harness.Result{
			{
				Figure: &harness.Figure{Name: "ttfi", Title: "TTFI: theirs over ours", Bound: 3, Aim: 5, Higher: true},
				Value:  4, Low: 3.5, High: 4.5, Beside: []harness.Ratio{{Name: "again", Value: 2, Low: 1.75, High: 2.25}},
				Series: []*harness.Series{{Name: "ours-lazy", Unit: "ns/op", Values: []float64{3e6, 3.1e6, 3.2e6}}},
			},
			{
				Figure: &harness.Figure{Name: "growth-memory", Title: "TTFI against memory"},
				Notes:  []string{"a note & more"},
				Series: []*harness.Series{
					{Name: "ours-lazy", Measure: "64 MiB", Unit: "ns/op", Values: []float64{3e6, 3.3e6}},
					{Name: "criu", Measure: "64 MiB", Unit: "ns/op", Err: errors.New("it does <not> work here\nand that is why")},
					{Name: "ours-lazy", Measure: "CPU: keeper", Detail: true, Unit: "ns/op", Values: []float64{7e5, 7e5}},
				},
				Err: errors.New("growth-memory: criu: it does <not> work here\nand that is why"),
				Plots: []*plot.Plot{{
					Name: "ttfi-memory", Title: "Time to first instruction", X: plot.Axis{Label: "memory", Unit: plot.Bytes, Log: true},
					Y: plot.Axis{Label: "time", Unit: plot.Nanoseconds, Log: true}, Lines: []plot.Line{line("ours-lazy", 3e6), line("ours-eager", 5e7), line("cold start", 2e8)},
				}},
			},
			{
				Figure: &harness.Figure{Name: "latency", Title: "what touches wait"},
				Plots: []*plot.Plot{
					{Name: "residency", Title: "Memory over time", X: plot.Axis{Label: "time", Unit: plot.Nanoseconds}, Y: plot.Axis{Label: "memory", Unit: plot.Bytes}, Lines: []plot.Line{long}},
					{Name: "fault-stages", Title: "Stages", X: plot.Axis{Label: "mean", Unit: plot.Nanoseconds}, Bars: []plot.Bar{bar("ours-lazy"), bar("ours-lazy-nofill-zstd-64KiB")}},
				},
			},
		},
	}
}

func TestWrite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "report")
	if err := report.Write(dir, sample()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"index.html", "ttfi-memory.svg", "residency.svg", "fault-stages.svg"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Size() < 1000 {
			t.Errorf("%s: %v", name, err)
		}
	}
	page, err := os.ReadFile(filepath.Join(dir, "index.html"))
	if err != nil {
		t.Fatal(err)
	}
	for _, outside := range []string{"src=", "<link", "@import", "url(", "<script"} {
		if strings.Contains(string(page), outside) {
			t.Errorf("the page has %q in it: it is to need nothing besides itself", outside)
		}
	}
}

// look is run in the page: it says what a reader sees. Texts of a plot that lie
// over one another or outside of it, and those that have too little contrast,
// are listed.
const look = `<script>
addEventListener('load', () => {
	const light = c => {
		const [r, g, b] = c.match(/[\d.]+/g).slice(0, 3).map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
		return 0.2126 * r + 0.7152 * g + 0.0722 * b;
	};
	const contrast = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
	const seen = {ground: getComputedStyle(document.body).backgroundColor, plots: 0, marks: 0, overlaps: [], outside: [], faint: [], wide: document.documentElement.scrollWidth - innerWidth, text: document.body.innerText};
	for (const svg of document.querySelectorAll('figure svg')) {
		seen.plots++;
		const all = svg.getBoundingClientRect(), ground = light(getComputedStyle(svg.querySelector('.ground')).fill);
		const texts = [...svg.querySelectorAll('text')].map(e => [e, e.getBoundingClientRect()]);
		texts.forEach(([e, a], i) => {
			if (a.left < all.left - 1 || a.right > all.right + 1 || a.top < all.top - 1 || a.bottom > all.bottom + 1) seen.outside.push(e.textContent);
			if (contrast(light(getComputedStyle(e).fill), ground) < 4.5) seen.faint.push(e.textContent);
			for (const o of svg.querySelectorAll('.swatch')) {
				const b = o.getBoundingClientRect();
				if (a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom) seen.overlaps.push(e.textContent + ' | a colour of the legend');
			}
			for (const [o, b] of texts.slice(i + 1))
				if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3) seen.overlaps.push(e.textContent + ' | ' + o.textContent);
		});
		for (const e of svg.querySelectorAll('.line, rect[class^=f]')) {
			const style = getComputedStyle(e), box = e.getBoundingClientRect();
			const colour = e.tagName === 'rect' ? style.fill : style.stroke;
			if (contrast(light(colour), ground) < 3) seen.faint.push(e.outerHTML.slice(0, 80));
			if (box.width + box.height > 0) seen.marks++;
		}
	}
	const pre = document.createElement('pre');
	pre.id = 'seen';
	pre.textContent = JSON.stringify(seen);
	document.body.append(pre);
});
</script>`

// A sight is what look saw.
type sight struct {
	Ground                   string
	Plots, Marks             int
	Overlaps, Outside, Faint []string
	Wide                     float64
	Text                     string
}

func chromium(t *testing.T, args ...string) []byte {
	t.Helper()
	common := []string{"--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1100,1600", "--user-data-dir=" + t.TempDir()}
	cmd := exec.CommandContext(t.Context(), "chromium", append(common, args...)...)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("chromium: %v", err)
	}
	return out
}

// The page is shown by a real browser, in light and in dark.
func TestBrowser(t *testing.T) {
	uffdtest.Need(t, "cmd:chromium")
	dir := t.TempDir()
	if err := report.Write(dir, sample()); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(dir, "index.html"))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "looked-at.html")
	if err := os.WriteFile(file, []byte(strings.Replace(string(page), "</head>", look+"</head>", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	grounds := map[string]bool{}
	for _, scheme := range []string{"1", "0"} { // light, dark
		flag := "--blink-settings=preferredColorScheme=" + scheme
		dom := string(chromium(t, flag, "--dump-dom", "file://"+file))
		_, after, _ := strings.Cut(dom, `<pre id="seen">`)
		text, _, found := strings.Cut(after, "</pre>")
		var seen sight
		if err := json.Unmarshal([]byte(html.UnescapeString(text)), &seen); err != nil || !found {
			t.Fatalf("%v in %.300q", err, text)
		}
		grounds[seen.Ground] = true
		if seen.Plots != 3 || seen.Marks < 12 {
			t.Errorf("%d plots with %d marks are seen, want 3 with 12 or more", seen.Plots, seen.Marks)
		}
		if len(seen.Overlaps)+len(seen.Outside)+len(seen.Faint) > 0 || seen.Wide > 0 {
			t.Errorf("on %s texts overlap: %q; lie outside: %q; are hard to see: %q; the page is too wide by %v",
				seen.Ground, seen.Overlaps, seen.Outside, seen.Faint, seen.Wide)
		}
		for _, want := range []string{"Some <Processor>", "4.00", "growth-memory", "it does <not> work here", "a note & more", "CPU: keeper", "700.0 µs"} {
			if !strings.Contains(seen.Text, want) {
				t.Errorf("no %q is seen", want)
			}
		}
	}
	if len(grounds) != 2 {
		t.Errorf("light and dark look alike: %v", grounds)
	}
	shot := filepath.Join(dir, "shot.png")
	chromium(t, "--screenshot="+shot, "file://"+filepath.Join(dir, "ttfi-memory.svg"))
	f, err := os.Open(shot)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	picture, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	colours := map[[3]uint32]bool{}
	for y := range picture.Bounds().Dy() {
		for x := range picture.Bounds().Dx() {
			r, g, b, _ := picture.At(x, y).RGBA()
			colours[[3]uint32{r >> 8, g >> 8, b >> 8}] = true
		}
	}
	if len(colours) < 10 {
		t.Errorf("the SVG file alone shows %d colours", len(colours))
	}
}
