package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/lazyrestore/lazyrestore/bench/harness"
	"github.com/lazyrestore/lazyrestore/bench/report"
	"github.com/lazyrestore/lazyrestore/bench/workload"
	"github.com/lazyrestore/lazyrestore/cmd/internal/cli"
	"github.com/lazyrestore/lazyrestore/cmd/internal/verb"
)

// benchVerb is a run of the verb.
type benchVerb struct {
	*verb.Command
	opts    harness.Options
	program []string // the user's own, after "--"
	ready   string
	pid     int
	copies  bool
	also    string
	codecs  string
	chunks  string
	report  string
	list    bool
	check   bool
	samples bool
}

func bench(c *verb.Command, program []string) *cli.Command {
	v := &benchVerb{Command: c, program: program}
	v.opts.Cache = harness.CacheWarm
	v.opts.ReadyTime = 5 * time.Minute
	return &cli.Command{
		Name: "bench", Args: "[FIGURE...|demo|real [PROGRAM...]|-- PROGRAM [ARGUMENT]...]", MaxArgs: -1,
		Short: "measure restores on this machine",
		Long: `Measures restores on this machine, side by side with a cold start of the program, with CRIU where there is one, and with
			what the machine could do at best. All subjects of a figure take turns, so that a busy machine hits them alike.

			Without arguments it takes all figures; --list names them. With -- PROGRAM it has a program of your own, which it
			starts as often as need be, brought back in each way; with --pid it measures checkpoints of a process that
			runs, and goes on. The word demo has a program stopped and brought
			back, with times; real has real programs interrupted and compares what they end with to an uninterrupted run.

			What cannot be measured here is a row that says why, and the rest goes on; the exit code is 1 then. It needs root, as
			restores do.`,
		Objects: objects(),
		Flags:   append(v.flags(), c.Flags()...),
		Examples: []cli.Example{
			{Line: "lazyrestore bench ttfi sweep", Does: "Take two figures."},
			{Line: "lazyrestore bench --report /tmp/report", Does: "Take all, and write a page with plots."},
			{Line: "lazyrestore bench --ready '^step 100' -- ./solver input", Does: "Measure a program of your own: it is checkpointed once a line of its output begins with step 100."},
			{Line: "lazyrestore bench --samples ttfi >new.txt; benchstat old.txt new.txt", Does: "Compare with an earlier run."},
		},
		Run: v.run,
	}
}

func (v *benchVerb) flags() []cli.Flag {
	o := &v.opts
	return []cli.Flag{
		{Name: "list", Short: 'l', Value: cli.Bool(&v.list), Usage: "List the figures and end"},
		{Name: "quick", Value: cli.Bool(&o.Quick), Usage: "Take fewer samples of smaller programs, and without figures named leave out some that take long: to see that all works, not to quote"},
		{Name: "runs", Short: 'n', Arg: "N", Value: cli.Int(&o.Runs, 1, 10000), Usage: "Measure each subject N times; each figure has its own number if not given"},
		{Name: "mib", Arg: "N", Value: cli.Int(&o.MiB, 1, 1<<24), Usage: "Memory of the program in MiB, where the figure leaves it open"},
		{Name: "also", Arg: "SUBJECT,...", Value: cli.String(&v.also), Usage: "Show these beside, where a figure compares restores: criu-eager, ours-eager, ours-zstd, cold"},
		{Name: "dir", Arg: "DIR", Value: cli.String(&o.Dir), Operand: cli.OperandDirectory, Usage: "Put images and the programs' files below DIR; /dev/shm if not given"},
		{Name: "disk", Arg: "DIR", Value: cli.String(&o.Disk), Operand: cli.OperandDirectory, Usage: "Where the images lie that are read from a disk with a cold page cache; /var/tmp if not given"},
		{Name: "codec", Arg: "CODEC,...", Value: cli.String(&v.codecs), Usage: "Codecs of the images of programs; lz4 if not given"},
		{Name: "chunk-size", Arg: "SIZE,...", Value: cli.String(&v.chunks), Usage: "Chunk sizes of the images of programs; 64KiB if not given"},
		{
			Name: "cache", Arg: "warm|cold", Choices: []string{"warm", "cold"},
			Value: cli.Word(&o.Cache, harness.CacheWarm, harness.CacheCold),
			Usage: "What the page cache has of an image before each restore: all, or, with --dir on a disk, nothing",
		},
		{Name: "criu", Arg: "PATH", Value: cli.String(&o.CRIU), Operand: cli.OperandFile, Usage: "CRIU to compare with: an executable, or the directory given to bench/criu/install.sh; where that puts it, else on the PATH, if not given"},
		{Name: "lazyrestore", Arg: "PATH", Value: cli.String(&o.Lazyrestore), Operand: cli.OperandFile, Usage: "The command under test; the one beside this one if not given"},
		{Name: "programs", Arg: "DIR", Value: cli.String(&o.Programs), Operand: cli.OperandDirectory, Usage: "Build the programs that are restored into DIR; kept in the user's cache if not given"},
		{Name: "samples", Value: cli.Bool(&v.samples), Usage: "Print every sample too, in the benchmark format of Go, for benchstat"},
		{Name: "ready", Arg: "PATTERN", Value: cli.String(&v.ready), Usage: "Your own program is in the middle of its work once its output matches PATTERN, a regular expression of Go, in which ^ and $ are ends of lines; any line will do if not given"},
		{Name: "ready-timeout", Arg: "TIME", Value: cli.Duration(&v.opts.ReadyTime, 100*time.Millisecond), Usage: "How long a program has to get there"},
		{Name: "pid", Arg: "PID", Value: cli.Int(&v.pid, 1, 1<<30), Operand: cli.OperandPID, Usage: "Measure checkpoints of a process that runs already, and goes on"},
		{Name: "copies", Value: cli.Bool(&v.copies), Usage: "With --pid, restore the process beside itself too, in a pid namespace of its own; the copy, which has the same files open, is ended as soon as it runs"},
		{Name: "report", Arg: "DIR", Value: cli.String(&v.report), Operand: cli.OperandDirectory, Usage: "Write DIR/index.html, a page with plots, and each plot as an SVG file"},
		{Name: "check", Value: cli.Bool(&v.check), Usage: "End with code 1 if a figure is beyond its bound, too"},
	}
}

func (v *benchVerb) run(args []string) error {
	if v.list {
		v.printList()
		return nil
	}
	v.opts.Extra, v.opts.Codecs, v.opts.Chunks = words(v.also), words(v.codecs), words(v.chunks)
	if v.JSON && v.samples {
		return &cli.UsageError{Problem: "--json and --samples contradict each other", Hint: "the JSON object has all samples"}
	}
	ctx, stop := verb.UntilEnded()
	defer stop()
	work, err := v.work(ctx, args)
	if err != nil {
		return err
	}
	if !v.Quiet {
		v.opts.Log = v.Stderr
	}
	if v.opts.Lazyrestore == "" {
		v.opts.Lazyrestore = besideUs()
	}
	env, err := harness.NewEnv(v.opts)
	if err != nil {
		return err
	}
	return errors.Join(work(env), env.Close())
}

// work is what the arguments ask for.
func (v *benchVerb) work(ctx context.Context, args []string) (func(*harness.Env) error, error) {
	switch {
	case len(v.program) > 0 || v.pid != 0 || v.copies:
		return v.own(ctx, args)
	case v.ready != "":
		return nil, &cli.UsageError{Problem: "--ready is for a program of your own", Hint: "name it behind --"}
	case slices.Equal(args, []string{"demo"}):
		return func(env *harness.Env) error { return env.Demo(ctx, v.Stdout) }, nil
	case len(args) > 0 && args[0] == "real":
		if err := known("program", args[1:], harness.RealPrograms()); err != nil {
			return nil, err
		}
		return func(env *harness.Env) error { return env.Real(ctx, v.Stdout, args[1:]) }, nil
	}
	figures, err := choose(args, v.opts.Quick)
	if err != nil {
		return nil, err
	}
	return func(env *harness.Env) error { return v.measure(ctx, env, figures) }, nil
}

// own is the user's own program or process.
func (v *benchVerb) own(ctx context.Context, args []string) (func(*harness.Env) error, error) {
	switch {
	case len(args) > 0:
		return nil, &cli.UsageError{Problem: "figures and a program of your own are measured one after the other", Hint: "leave out " + args[0]}
	case v.pid != 0 && len(v.program) > 0:
		return nil, &cli.UsageError{Problem: "--pid and -- PROGRAM contradict each other", Hint: "give one of them"}
	case v.copies && v.pid == 0:
		return nil, &cli.UsageError{Problem: "--copies is for a process that runs", Hint: "name it with --pid"}
	case v.pid != 0:
		return func(env *harness.Env) error {
			return v.measure(ctx, env, []*harness.Figure{harness.OwnProcess(v.pid, v.copies)})
		}, nil
	}
	opts := workload.OwnOptions{Args: v.program}
	if v.ready != "" {
		pattern, err := regexp.Compile("(?m)" + v.ready)
		if err != nil {
			return nil, &cli.UsageError{Problem: "--ready: " + err.Error(), Hint: "it is a regular expression of Go"}
		}
		opts.Ready = pattern
	}
	return func(env *harness.Env) error { return v.measure(ctx, env, []*harness.Figure{harness.Own(opts)}) }, nil
}

// known looks whether all words are among those that there are.
func known(what string, words, all []string) error {
	for _, word := range words {
		if slices.Contains(all, word) {
			continue
		}
		hint := "there are " + strings.Join(all, ", ")
		if near := cli.Nearest(word, all); near != "" {
			hint = "did you mean " + near + "?"
		}
		return &cli.UsageError{Problem: fmt.Sprintf("there is no %s %q", what, word), Hint: hint}
	}
	return nil
}

// choose finds the figures by name; no names are all figures, those that take
// long not if it is to be quick.
func choose(names []string, quick bool) ([]*harness.Figure, error) {
	all := harness.Figures()
	if len(names) == 0 {
		return slices.DeleteFunc(all, func(f *harness.Figure) bool { return quick && f.Long }), nil
	}
	var have []string
	for _, f := range all {
		have = append(have, f.Name)
	}
	if err := known("figure", names, have); err != nil {
		return nil, err
	}
	var chosen []*harness.Figure
	for _, name := range names {
		chosen = append(chosen, all[slices.Index(have, name)])
	}
	return chosen, nil
}

// measure takes figures and shows what they came to.
func (v *benchVerb) measure(ctx context.Context, env *harness.Env, figures []*harness.Figure) error {
	run, interrupted := env.Measure(ctx, figures)
	if err := v.show(run); err != nil {
		return err
	}
	if interrupted != nil {
		return fmt.Errorf("interrupted; what was measured until then is shown: %w", interrupted)
	}
	if err := run.Failed(v.check); err != nil {
		if !v.JSON { // the object says it
			verb.Tell(v.Stderr, "bench", err)
		}
		return verb.Status(verb.Failed)
	}
	return nil
}

// A figureList is what --list --json prints.
type figureList struct {
	Figures []listedFigure `json:"figures"`
}

type listedFigure struct {
	Name  string `json:"name"`
	Title string `json:"title"`
}

// printList prints what figures there are.
func (v *benchVerb) printList() {
	var list figureList
	for _, f := range harness.Figures() {
		list.Figures = append(list.Figures, listedFigure{f.Name, f.Title})
		v.Print(fmt.Sprintf("%-17s %s\n", f.Name, f.Title))
	}
	if v.JSON {
		v.PrintJSON(list)
	}
}

// words are the parts of a list with commas; none of an empty one.
func words(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' })
}

// show writes a run in the forms that were asked for.
func (v *benchVerb) show(run *harness.Run) error {
	if v.report != "" {
		if err := report.Write(v.report, run); err != nil {
			return err
		}
		v.Note("report: " + filepath.Join(v.report, "index.html"))
	}
	if v.JSON {
		return run.WriteJSON(v.Stdout)
	}
	if v.samples {
		run.Samples(v.Stdout)
	} else {
		run.Machine.Describe(v.Stdout)
	}
	fmt.Fprintln(v.Stdout)
	return harness.Table(v.Stdout, run.Results)
}

// besideUs is lazyrestore beside this executable, else what make builds, else
// the one on the PATH.
func besideUs() string {
	if self, err := os.Executable(); err == nil {
		if path := filepath.Join(filepath.Dir(self), "lazyrestore"); executable(path) {
			return path
		}
	}
	if path := filepath.Join("bin", "lazyrestore"); executable(path) {
		return path
	}
	if path, err := exec.LookPath("lazyrestore"); err == nil {
		return path
	}
	return filepath.Join("bin", "lazyrestore")
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}
