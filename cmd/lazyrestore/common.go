package main

import (
	"io"
	"log/slog"

	"github.com/lazyrestore/lazyrestore/cmd/internal/cli"
)

// common are the flags that all verbs share.
type common struct {
	json     bool
	quiet    bool
	verbose  int
	progress progressStyle
}

// flags describes them; a verb that shows progress asks for its flag too.
func (o *common) flags(progress bool) []cli.Flag {
	list := []cli.Flag{
		{Name: "json", Value: cli.Bool(&o.json), Usage: "Print one JSON object to standard output; progress and messages go to standard error"},
		{Name: "quiet", Short: 'q', Value: cli.Bool(&o.quiet), Usage: "Print errors only"},
		{Name: "verbose", Short: 'v', Value: cli.Count(&o.verbose), Usage: "Log what is done; twice: in detail"},
	}
	if progress {
		o.progress = progressAuto
		list = append(list, cli.Flag{
			Name: "progress", Arg: "auto|bar|plain|none", Choices: []string{"auto", "bar", "plain", "none"},
			Value: cli.Word(&o.progress, progressAuto, progressBar, progressPlain, progressNone),
			Usage: "How progress is shown on standard error: a bar, plain lines, or not at all; auto is a bar on a terminal, else lines, and nothing while a process that is restored in the foreground writes there too",
		})
	}
	return list
}

func (o *common) check() error {
	if o.quiet && o.verbose > 0 {
		return &cli.UsageError{Problem: "--quiet and --verbose contradict each other", Hint: "give one of them"}
	}
	return nil
}

// logger writes to w what -q and -v let through.
func (o *common) logger(w io.Writer) *slog.Logger {
	level := slog.LevelWarn
	switch {
	case o.quiet:
		level = slog.LevelError
	case o.verbose == 1:
		level = slog.LevelInfo
	case o.verbose > 1:
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}
