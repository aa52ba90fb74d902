package harness

import "slices"

// Figures is all figures, in the order of the tables. A family is a file, and a
// line here.
func Figures() []*Figure {
	return slices.Concat(
		ttfiFigures(),
		startupFigures(),
		touchFigures(),
		checkpointFigures(),
		growthFigures(),
		objectFigures(),
		stateFigures(),
		phaseFigures(),
		residencyFigures(),
		latencyFigures(),
		codecFigures(),
		programFigures(),
		remoteFigures(),
		serveFigures(),
		criuDaemonFigures(),
	)
}
