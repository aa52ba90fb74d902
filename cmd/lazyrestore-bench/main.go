// Command lazyrestore-bench is the verb `lazyrestore bench`, which executes it
// from beside itself: it measures restores on this machine, side by side with
// what a user would have instead.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/lazyrestore/lazyrestore/bench/harness"
	"github.com/lazyrestore/lazyrestore/bench/report"
	"github.com/lazyrestore/lazyrestore/cmd/internal/cli"
	shared "github.com/lazyrestore/lazyrestore/cmd/internal/verb"
)

// Exit codes, as those of lazyrestore.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run does what a command line says and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	v := &verb{ctx: ctx, stdout: stdout, stderr: stderr}
	own, program := split(args)
	v.program = program
	command := v.command()
	if shared.Asked(command, args, stdout) {
		return exitDone
	}
	rest, err := command.Parse(own)
	if errors.Is(err, cli.ErrHelp) {
		io.WriteString(stdout, command.Help())
		return exitDone
	}
	if err == nil {
		err = command.Run(rest)
	}
	return v.fail(err)
}

// split parts a command line at the "--" before the user's own program.
func split(args []string) (own, program []string) {
	for i, arg := range args {
		if arg == "--" {
			return args[:i], args[i+1:]
		}
	}
	return args, nil
}

// fail says what went wrong and gives the exit code.
func (v *verb) fail(err error) int {
	if err == nil {
		return exitDone
	}
	fmt.Fprintln(v.stderr, "lazyrestore bench:", err)
	var usage *cli.UsageError
	if errors.As(err, &usage) {
		fmt.Fprintln(v.stderr, "  "+usage.Hint)
		if v.json {
			_ = json.NewEncoder(v.stdout).Encode(map[string]any{"error": err.Error(), "code": exitUsage})
		}
		return exitUsage
	}
	return exitFailed
}

// show writes a run in the forms that were asked for.
func (v *verb) show(run *harness.Run) error {
	if v.report != "" {
		if err := report.Write(v.report, run); err != nil {
			return err
		}
		v.logf("report: %s/index.html", v.report)
	}
	if v.json {
		return run.WriteJSON(v.stdout)
	}
	if v.samples {
		run.Samples(v.stdout)
	} else {
		run.Machine.Describe(v.stdout)
	}
	fmt.Fprintln(v.stdout)
	return harness.Table(v.stdout, run.Results)
}

func (v *verb) logf(format string, args ...any) {
	if !v.quiet {
		fmt.Fprintf(v.stderr, format+"\n", args...)
	}
}
