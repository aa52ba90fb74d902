package verb

import (
	"errors"
	"io"
	"log/slog"
	"slices"

	"github.com/lazyrestore/lazyrestore/cmd/internal/cli"
)

// A Command is a verb being run: where it writes, and the flags that all verbs
// share.
type Command struct {
	Stdout, Stderr io.Writer
	JSON           bool
	Quiet          bool
	Verbose        int

	// Acted says that the verb has done what nothing takes back: its exit code is about
	// that then, also where there was no room for the words about it.
	Acted bool

	unwritten error // what came of the first thing that could not be printed
}

// Flags describes the flags that all verbs share.
func (c *Command) Flags() []cli.Flag {
	return []cli.Flag{
		{Name: "json", Value: cli.Bool(&c.JSON), Usage: "Print one JSON object to standard output; progress and messages go to standard error"},
		{Name: "quiet", Short: 'q', Value: cli.Bool(&c.Quiet), Usage: "Print errors only"},
		{Name: "verbose", Short: 'v', Value: cli.Count(&c.Verbose), Usage: "Log what is done; twice: in detail"},
	}
}

func (c *Command) check() error {
	if c.Quiet && c.Verbose > 0 {
		return &cli.UsageError{Problem: "--quiet and --verbose contradict each other", Hint: "give one of them"}
	}
	return nil
}

// Logger writes to w what -q and -v let through.
func (c *Command) Logger(w io.Writer) *slog.Logger {
	level := slog.LevelWarn
	switch {
	case c.Quiet:
		level = slog.LevelError
	case c.Verbose == 1:
		level = slog.LevelInfo
	case c.Verbose > 1:
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}

// Do parses the arguments of a verb, runs it and returns the exit code.
func (c *Command) Do(def *cli.Command, args []string) int {
	rest, err := def.Parse(args)
	if errors.Is(err, cli.ErrHelp) {
		c.write(def.Help())
		return c.Fail(def.Name, c.unwritten)
	}
	if err == nil {
		err = c.check()
	}
	if err != nil {
		// The mistake may stand before --json; who wants JSON gets it.
		c.JSON = c.JSON || slices.Contains(args, "--json")
	} else {
		err = def.Run(rest)
	}
	switch {
	case err != nil || c.unwritten == nil:
	case c.Acted:
		c.Note("warning: " + c.unwritten.Error())
	default:
		err = c.unwritten
	}
	return c.Fail(def.Name, err)
}
