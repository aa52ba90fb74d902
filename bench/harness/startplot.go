package harness

import "github.com/lazyrestore/lazyrestore/bench/plot"

// startPlot is when a program that was brought back is where, a bar for each
// subject. Each part is the time that it takes besides what comes before it.
func (r *Result) startPlot(name, program string) *plot.Plot {
	p := &plot.Plot{
		Name: "start-" + name, Title: "How long until " + program + " is there",
		X:    plot.Axis{Label: "time since the restore command was started, medians", Unit: plot.Nanoseconds},
		Note: "Each part is the time after the one before it; what comes earlier than another is not seen.",
	}
	for _, subject := range r.Subjects() {
		bar, reached := plot.Bar{Name: subject}, 0.0
		for _, part := range []struct{ measure, name string }{
			{measureTTFI, "to the first instruction"},
			{measureStep, "to the first step"},
			{measureResident, "to all resident"},
		} {
			// One of no length keeps the order of the names, and their colours.
			at := reached
			if s := r.Find(subject, part.measure); s != nil && len(s.Values) > 0 {
				at = max(at, s.Median())
			}
			bar.Parts = append(bar.Parts, plot.Part{Name: part.name, Value: at - reached})
			reached = at
		}
		if reached > 0 {
			p.Bars = append(p.Bars, bar)
		}
	}
	return p
}

// costPlot is the processor time of what restores, by its parts.
func (r *Result) costPlot(name, program string) *plot.Plot {
	p := &plot.Plot{
		Name: "cost-" + name, Title: "Processor time to bring " + program + " back",
		X:    plot.Axis{Label: "processor time until all is resident, medians", Unit: plot.Nanoseconds},
		Note: "Without the program itself, in whose time CRIU's restore reads all eager memory.",
	}
	for _, subject := range r.Subjects() {
		bar := plot.Bar{Name: subject}
		for _, part := range []string{partCommand, partKeeper, partServer, partDaemon} {
			if s := r.Find(subject, detailCPU+part); s != nil && s.Median() > 0 {
				bar.Parts = append(bar.Parts, plot.Part{Name: part, Value: s.Median()})
			}
		}
		if len(bar.Parts) > 0 {
			p.Bars = append(p.Bars, bar)
		}
	}
	return p
}
