package main

import (
	"github.com/lazyrestore/lazyrestore/cmd/internal/cli"
	"github.com/lazyrestore/lazyrestore/cmd/internal/verb"
)

// describe prints all verbs as JSON, for the generator of the manual.
func (c *command) describe() int {
	manual := cli.Manual{
		Program: "lazyrestore",
		Short:   "checkpoint a process and restore it lazily",
		Version: currentVersion().Version,
		Exit:    verb.ExitTable(),
		Failure: verb.FailureObject(),
	}
	for _, v := range verbs() {
		if v.build == nil {
			manual.Others = append(manual.Others, cli.Page{Name: v.name, Short: v.short})
			continue
		}
		manual.Pages = append(manual.Pages, v.build(new(command)).Page())
	}
	c.PrintJSON(manual)
	return verb.Done
}
