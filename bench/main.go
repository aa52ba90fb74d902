// Command bench takes lazyrestore's figures.
//
//	go run ./bench                    all of them
//	go run ./bench ttfi touch-page    some
//	go run ./bench --list             what there is
//	go run ./bench demo               a program is stopped and goes on, with times
//	go run ./bench real [PROGRAM...]  real programs end as if uninterrupted
//
// Samples go to standard output in Go's benchmark format, for benchstat, and
// after them a table for people; progress goes to standard error.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/lazyrestore/lazyrestore/bench/harness"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	code, err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
	os.Exit(code)
}

const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

type settings struct {
	harness.Options
	list, check, quiet bool
	cache              string
}

func flags(s *settings) *pflag.FlagSet {
	f := pflag.NewFlagSet("bench", pflag.ContinueOnError)
	f.SortFlags = false
	f.Usage = func() {
		fmt.Fprintf(os.Stderr, "Usage: bench [options] [FIGURE...|demo|real [PROGRAM...]]\n\n%s", f.FlagUsages())
	}
	f.BoolVarP(&s.list, "list", "l", false, "list the figures and end")
	f.StringVar(&s.Lazyrestore, "lazyrestore", "bin/lazyrestore", "the `command` under test")
	f.StringVar(&s.CRIU, "criu", "", "CRIU: an executable, or the `directory` given to bench/criu/install.sh (default: where that puts it, else PATH)")
	f.StringVar(&s.Dir, "dir", "/dev/shm", "put images and the programs' files into a directory under `DIR`")
	f.StringVar(&s.Programs, "programs", "bench/out", "build the programs into `DIR`")
	f.StringVar(&s.cache, "cache", string(harness.CacheWarm), "page cache before each restore: warm, or cold with --dir on a disk")
	f.IntVarP(&s.Runs, "runs", "n", 0, "measure each subject `N` times (default: the figure's own number)")
	f.IntVar(&s.MiB, "mib", 0, "memory of the program in `MIB` (default: the figure's own)")
	f.StringSliceVar(&s.Extra, "also", nil, "show these beside: criu-eager, ours-eager, ours-zstd, cold")
	f.BoolVar(&s.check, "check", false, "end with status 1 if a figure is beyond its bound")
	f.BoolVarP(&s.quiet, "quiet", "q", false, "no progress")
	return f
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (int, error) {
	var s settings
	f := flags(&s)
	if err := f.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return exitOK, nil
		}
		return exitUsage, err
	}
	if s.list {
		for _, figure := range harness.Figures() {
			fmt.Fprintf(stdout, "%-12s %s\n", figure.Name, figure.Title)
		}
		return exitOK, nil
	}
	s.Cache = harness.CacheState(s.cache)
	if s.Cache != harness.CacheWarm && s.Cache != harness.CacheCold {
		return exitUsage, fmt.Errorf("--cache %s: it is warm or cold", s.cache)
	}
	work, err := task(f.Args(), stdout, s.check)
	if err != nil {
		return exitUsage, err
	}
	if !s.quiet {
		s.Log = stderr
	}
	env, err := harness.NewEnv(s.Options)
	if err != nil {
		return exitFailed, err
	}
	if err = errors.Join(work(ctx, env), env.Close()); err != nil {
		return exitFailed, err
	}
	return exitOK, nil
}

// task is what the arguments ask for.
func task(args []string, w io.Writer, check bool) (func(context.Context, *harness.Env) error, error) {
	if slices.Equal(args, []string{"demo"}) {
		return func(ctx context.Context, env *harness.Env) error { return env.Demo(ctx, w) }, nil
	}
	if len(args) > 0 && args[0] == "real" {
		for _, name := range args[1:] {
			if !slices.Contains(harness.RealPrograms(), name) {
				return nil, fmt.Errorf("no program is called %q: %v", name, harness.RealPrograms())
			}
		}
		return func(ctx context.Context, env *harness.Env) error { return env.Real(ctx, w, args[1:]) }, nil
	}
	figures, err := choose(args)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, env *harness.Env) error { return measure(ctx, env, figures, w, check) }, nil
}

// choose finds the figures by name; none are all.
func choose(names []string) ([]*harness.Figure, error) {
	all := harness.Figures()
	if len(names) == 0 {
		return all, nil
	}
	var chosen []*harness.Figure
	for _, name := range names {
		at := slices.IndexFunc(all, func(f *harness.Figure) bool { return f.Name == name })
		if at < 0 {
			return nil, fmt.Errorf("no figure is called %q (--list shows them)", name)
		}
		chosen = append(chosen, all[at])
	}
	return chosen, nil
}

// measure takes the figures one after the other. One that fails is reported in
// its row; with check it, or one beyond its bound, is an error in the end.
func measure(ctx context.Context, env *harness.Env, figures []*harness.Figure, w io.Writer, check bool) error {
	env.Describe(w)
	var results []*harness.Result
	var missed []error
	for _, figure := range figures {
		result := figure.Measure(ctx, env)
		if err := ctx.Err(); err != nil {
			return err
		}
		result.Samples(w)
		results = append(results, result)
		switch {
		case result.Err != nil:
			missed = append(missed, result.Err)
		case check && result.Verdict() == "MISSED":
			missed = append(missed, fmt.Errorf("%s is beyond its bound", figure.Name))
		}
	}
	fmt.Fprintln(w)
	return errors.Join(append(missed, harness.Table(w, results))...)
}
