// Command lazyrestore-bench is the verb bench of lazyrestore, which executes it
// from beside itself: it measures restores on this machine, side by side with
// what a user would have instead.
package main

import (
	"io"
	"os"
	"strings"

	"github.com/lazyrestore/lazyrestore/cmd/internal/cli"
	"github.com/lazyrestore/lazyrestore/cmd/internal/verb"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run does what a command line says and returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	own, program := split(args)
	return verb.External(func(c *verb.Command) *cli.Command { return bench(c, program) }, own, stdout, stderr)
}

// split parts a command line at the "--" before the user's own program.
func split(args []string) (own, program []string) {
	if len(args) > 0 && strings.HasPrefix(args[0], "__") {
		return args, nil // a completion script asks, in words of its own
	}
	for i, arg := range args {
		if arg == "--" {
			return args[:i], args[i+1:]
		}
	}
	return args, nil
}
