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
	"io"
	"os"

	"github.com/lazyrestore/lazyrestore/cmd/internal/verb"
)

// A command is a verb being run, with the flags that verbs share.
type command struct {
	verb.Command
	progress progressStyle
}

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run does what a command line says and returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	c := &command{Command: verb.Command{Stdout: stdout, Stderr: stderr}}
	if len(args) == 0 {
		io.WriteString(stderr, overview())
		return verb.Usage
	}
	name, args := args[0], args[1:]
	switch name {
	case "restore":
		verb.ShareNoHeap()
		verb.FillHeap()
	case "-h", "--help", "help":
		return c.help(args)
	case "--version", "-V":
		name = "version"
	case verb.CompleteVerb:
		return c.complete(args)
	case waitVerb:
		io.Copy(io.Discard, os.Stdin)
		return verb.Done
	case verb.DescribeVerb:
		return c.describe()
	}
	build, external := lookup(name)
	switch {
	case external:
		return c.external(name, args)
	case build == nil:
		return c.Fail(name, unknownVerb(name))
	}
	return c.Do(build(c), args)
}
