// Looking for a CPU quota in control groups takes a noticeable part of a start,
// and the few threads of a pager gain nothing from knowing it.

//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Command lazyrestore checkpoints a running process and restores it lazily: it
// runs within milliseconds, and its memory streams in as it is touched.
//
// The verbs are thin: flags become option structs of the library, errors
// become exit codes. Verbs with heavy imports are executables of their own,
// lazyrestore-VERB, beside this one.
//
// Start-up is a good part of the time to the first instruction. So verbs are
// dispatched by hand, nothing is done before one is known, and the packages
// that are linked are held against testdata/imports.txt.
package main

import (
	"errors"
	"io"
	"os"
	"slices"

	"github.com/lazyrestore/lazyrestore/cmd/internal/cli"
)

// A command is a verb being run: where it reads and writes, and the flags that
// all verbs share.
type command struct {
	stdout, stderr io.Writer
	common         common
}

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run does what a command line says and returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	c := &command{stdout: stdout, stderr: stderr}
	if len(args) == 0 {
		io.WriteString(stderr, overview())
		return exitUsage
	}
	verb, args := args[0], args[1:]
	switch verb {
	case "-h", "--help", "help":
		return c.help(args)
	case "--version", "-V":
		verb = "version"
	case completeVerb:
		return c.complete(args)
	case waitVerb:
		io.Copy(io.Discard, os.Stdin)
		return exitDone
	case describeVerb:
		return c.describe()
	}
	build, external := lookup(verb)
	switch {
	case external:
		return c.external(verb, args)
	case build == nil:
		return c.fail(verb, unknownVerb(verb))
	}
	return c.do(build(c), args)
}

// do parses the arguments of a verb and runs it.
func (c *command) do(def *cli.Command, args []string) int {
	rest, err := def.Parse(args)
	if errors.Is(err, cli.ErrHelp) {
		io.WriteString(c.stdout, def.Help())
		return exitDone
	}
	if err == nil {
		err = c.common.check()
	}
	if err != nil {
		// The mistake may stand before --json; who wants JSON gets it.
		c.common.json = c.common.json || slices.Contains(args, "--json")
	} else {
		err = def.Run(rest)
	}
	return c.fail(def.Name, err)
}
