package main

import "github.com/lazyrestore/lazyrestore/cmd/internal/cli"

// describe prints all verbs as JSON, for the generator of the manual.
func (c *command) describe() int {
	manual := cli.Manual{
		Program: "lazyrestore",
		Short:   "checkpoint a process and restore it lazily",
		Version: currentVersion().Version,
		Exit:    exitTable(),
	}
	for _, v := range verbs() {
		if v.build == nil {
			manual.Others = append(manual.Others, cli.Page{Name: v.name, Short: v.short})
			continue
		}
		manual.Pages = append(manual.Pages, v.build(new(command)).Page())
	}
	c.printJSON(manual)
	return exitDone
}

// exitTable is the exit codes in the words of the manual.
func exitTable() []cli.ExitCode {
	return []cli.ExitCode{
		{Code: exitDone, Means: "It was done."},
		{Code: exitFailed, Means: "It failed."},
		{Code: exitUsage, Means: "The command line was not understood."},
		{Code: exitRefused, Means: "It was refused: the process holds something that an image cannot hold, or this machine cannot take the image as it is, for example because the pid is taken."},
		{Code: exitDamaged, Means: "The image is damaged, or its format is newer than this program."},
		{Code: exitFacility, Means: "The machine, or the rights on it, lack something; lazyrestore check says what."},
		{Code: exitSource, Means: "The source of the pages was lost."},
		{Code: exitOurs, Means: "A restore in the foreground failed; the message and the JSON object have the code of this table. Else it ends with the code of the process, or 128+N if signal N ended it."},
	}
}
