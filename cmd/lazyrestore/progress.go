package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/lazyrestore/lazyrestore/cmd/internal/cli"
	"github.com/lazyrestore/lazyrestore/lazyrestore"
)

// progressStyle is how progress is shown.
type progressStyle string

const (
	progressAuto  progressStyle = "auto"
	progressBar   progressStyle = "bar"
	progressPlain progressStyle = "plain"
	progressNone  progressStyle = "none"
)

// Plain lines come this far apart; a log is not a terminal.
const plainInterval = 5 * time.Second

// flagsWithProgress describes the flags that all verbs share, and that of a
// verb which shows progress.
func (c *command) flagsWithProgress() []cli.Flag {
	c.progress = progressAuto
	return append(c.Flags(), cli.Flag{
		Name: "progress", Arg: "auto|bar|plain|none", Choices: []string{"auto", "bar", "plain", "none"},
		Value: cli.Word(&c.progress, progressAuto, progressBar, progressPlain, progressNone),
		Usage: "How progress is shown on standard error: a bar, plain lines, or not at all; auto is a bar on a terminal, else lines, and nothing while a process that is restored in the foreground writes there too",
	})
}

// settle makes bar, plain or none of auto.
func (c *command) settle() progressStyle {
	switch {
	case c.progress == progressAuto && c.Quiet:
		return progressNone
	case c.progress != progressAuto:
		return c.progress
	}
	if f, ok := c.Stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb" {
		return progressBar
	}
	return progressPlain
}

// A meter shows progress. It is used from one goroutine at a time.
type meter struct {
	w       io.Writer
	style   progressStyle
	columns int
	now     func() time.Time

	phase   string
	started time.Time // of the phase
	last    time.Time // when something was shown
	shown   bool      // a bar is on the screen

	counted    time.Time // when faults were counted last
	faultsThen uint64
	rate       float64 // of faults a second, by then
}

func newMeter(w io.Writer, style progressStyle) *meter {
	m := &meter{w: w, style: style, columns: 80, now: time.Now}
	if style == progressBar {
		if f, ok := w.(*os.File); ok {
			if columns, _, err := term.GetSize(int(f.Fd())); err == nil && columns > 20 {
				m.columns = columns
			}
		}
	}
	return m
}

// report is what options' Progress is set to; nil if nothing is to be shown,
// so that the work need not count.
func (m *meter) report() func(lazyrestore.Progress) {
	if m.style == progressNone {
		return nil
	}
	return m.show
}

func (m *meter) show(p lazyrestore.Progress) {
	now := m.now()
	if p.Phase != m.phase {
		m.phase, m.started = p.Phase, now
		if m.style == progressPlain {
			m.last = now // a phase that ends at once is not worth a line
			return
		}
	}
	if m.style == progressPlain {
		if now.Sub(m.last) >= plainInterval {
			m.last = now
			fmt.Fprintf(m.w, "lazyrestore: %s\n", m.line(p, now))
		}
		return
	}
	text := []rune(m.line(p, now))
	if bar := m.columns - len(text) - 4; p.Total > 0 && bar >= 10 {
		text = append(text, []rune(" ["+fill(bar, p.Done, p.Total)+"]")...)
	}
	fmt.Fprintf(m.w, "\r\x1b[K%s", string(text[:min(len(text), m.columns-1)]))
	m.shown = true
}

// line is "write 34 % 230 MiB of 670 MiB, 410 MiB/s, 2 s left"; of a pager it
// has the faults besides.
func (m *meter) line(p lazyrestore.Progress, now time.Time) string {
	elapsed := now.Sub(m.started)
	var rate float64 // bytes a second
	if elapsed > 0 {
		rate = float64(p.Done) / elapsed.Seconds()
	}
	if p.Total == 0 {
		if p.Done == 0 {
			return p.Phase
		}
		return fmt.Sprintf("%s %s, %s/s", p.Phase, sizeText(p.Done), sizeText(uint64(rate)))
	}
	done := min(p.Done, p.Total)
	text := fmt.Sprintf("%s %d %% %s of %s, %s/s", p.Phase, int(100*float64(done)/float64(p.Total)),
		sizeText(done), sizeText(p.Total), sizeText(uint64(rate)))
	if p.Pager != nil && p.Pager.OutageMS >= 1000 {
		return text + ", NOTHING COMES FOR " + timeText(milliseconds(p.Pager.OutageMS))
	}
	if left := remaining(done, p.Total, rate); elapsed >= time.Second && left >= time.Second {
		text += ", " + left.Round(time.Second).String() + " left"
	}
	if p.Pager != nil {
		text += m.faults(p.Pager, now)
	}
	return text
}

// faultWindow is the time over which faults are counted for their rate.
const faultWindow = time.Second

// faults is ", 1200 faults/s, median 14.3 µs, worst 2.1 ms".
func (m *meter) faults(s *lazyrestore.Stats, now time.Time) string {
	if since := now.Sub(m.counted); since >= faultWindow || m.counted.IsZero() {
		if !m.counted.IsZero() {
			m.rate = float64(s.Faults-m.faultsThen) / since.Seconds()
		}
		m.counted, m.faultsThen = now, s.Faults
	}
	if s.Faults == 0 {
		return ""
	}
	return fmt.Sprintf(", %.0f faults/s, median %s, worst %s", m.rate, timeText(milliseconds(s.FaultP50Micros/1000)), timeText(milliseconds(s.FaultMaxMicros/1000)))
}

// remaining is how long the rest takes at this rate; 0 where that is not known.
func remaining(done, total uint64, rate float64) time.Duration {
	const longest = 99 * time.Hour
	if rate <= 0 {
		return 0
	}
	seconds := float64(total-done) / rate
	if seconds > longest.Seconds() {
		return longest
	}
	return time.Duration(seconds * float64(time.Second))
}

func fill(width int, done, total uint64) string {
	n := int(float64(width) * float64(min(done, total)) / float64(total))
	return strings.Repeat("#", n) + strings.Repeat(".", width-n)
}

// clear takes the bar off the screen.
func (m *meter) clear() {
	if m.shown {
		io.WriteString(m.w, "\r\x1b[K")
		m.shown = false
	}
}
