package main

import "github.com/lazyrestore/lazyrestore/cmd/internal/cli"

// objects tells of what --json prints.
func objects() []cli.Object {
	return []cli.Object{{Of: "--json", Rows: `
		machine.goos                        the machine: its system
		machine.goarch                      its processor's kind
		machine.cpu                         the processor
		machine.cores                       how many of them
		machine.memory_bytes                its memory
		machine.kernel                      the release of the kernel
		machine.images                      where the images were
		machine.lazyrestore                 the version that was measured
		machine.criu                        that of CRIU; empty: none
		machine.load                        the load of the machine when the run began
		machine.began                       when that was
		took_ns                             nanoseconds that all of it took
		figures[].name                      of each figure: its name
		figures[].title                     what it says
		figures[].verdict                   how it stands to its bound
		figures[].value                     the figure, where it is one number
		figures[].first_quartile            of that
		figures[].third_quartile            of that
		figures[].bound                     what it may be at most, if there is a bound
		figures[].aim                       what it is to be
		figures[].beside[].name             other numbers of it: the name
		figures[].beside[].value            the number
		figures[].beside[].first_quartile   of that
		figures[].beside[].third_quartile   of that
		figures[].took_ns                   nanoseconds that it took
		figures[].error                     why there is none
		figures[].notes[]                   what is to be said of it
		figures[].series[].subject          of each series of samples: what was measured
		figures[].series[].measure          what of it
		figures[].series[].unit             the unit of its samples
		figures[].series[].median           their median
		figures[].series[].first_quartile   the first quartile
		figures[].series[].third_quartile   the third
		figures[].series[].runs             how many there are
		figures[].series[].values[]         the samples
		figures[].series[].error            why there are no more
		figures[].plots[]                   what the report draws, which may change`}, {Of: "--list --json", Rows: `
		figures[].name   of each figure: its name
		figures[].title  what it says`}}
}
