package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/lazyrestore/lazyrestore/cmd/internal/cli"
	"github.com/lazyrestore/lazyrestore/cmd/internal/verb"
	"github.com/lazyrestore/lazyrestore/lazyrestore"
)

type restoreVerb struct {
	*command
	opts    lazyrestore.RestoreOptions
	remote  remote
	image   string
	detach  bool
	pidfile string
	stats   string
	trace   string
	jsonFD  int
	report  int // descriptor of the pipe to the command that waits for a detached restore; 0: none
}

func (c *command) restore() *cli.Command {
	v := &restoreVerb{command: c}
	v.opts.Background = lazyrestore.BackgroundFull
	v.opts.ChangedFiles = lazyrestore.ChangedRefuse
	v.opts.Stdio = lazyrestore.StdioAuto
	v.opts.OnLost = lazyrestore.OnLostWait
	return &cli.Command{
		Name: "restore", Args: "IMAGE", MinArgs: 1, MaxArgs: 1, Operand: cli.OperandDirectory,
		Short: "run a process from an image, its memory loaded as it is touched",
		Long: `Runs the process of an image, under its old pid. It runs within milliseconds; its memory is installed as it is
			touched, and in the background.

			IMAGE is a directory, or an image of page servers (lazyrestore serve): tcp://HOST:PORT/NAME, tls://HOST:PORT/NAME or
			unix:///SOCKET/NAME. Several servers are given as tcp://HOST:PORT,HOST:PORT/NAME; where one is lost the next one is
			asked, and the process does not notice. The port is 7480 if not given.

			The command stays the parent of the process: it passes on the signals HUP, INT, QUIT, USR1, USR2, TERM, CONT, TSTP,
			WINCH and XCPU and ends with the exit code of the process, 128+N if signal N ended it, or 125 if the restore failed;
			the message then has the exit code that other verbs have for it (lazyrestore --help lists them). In the foreground of a
			terminal it gives that to a process that had one, as a shell does with a job: keys go to the process, and where that is
			stopped (Ctrl-Z) the command stops. Otherwise, as in a pipe with a pager, such a process has no terminal, and a warning says so.

			With --detach it prints the pid and returns as soon as the process runs, with those exit codes. The pager, which is
			the parent of the process then, leaves when all memory is there; where the process asks for a signal when its parent
			ends (PR_SET_PDEATHSIG), it stays until that has ended. What the process
			and the pager then write to pipes of the command goes to a log, /run/lazyrestore/PID.log. For users other than root
			that is $XDG_RUNTIME_DIR/lazyrestore/PID.log, or without that variable lazyrestore-UID/PID.log below $TMPDIR or
			/tmp. A log that the process does not write to goes with the pager, if it is empty; the others are removed by later
			detached restores, once the process has ended, nobody has them open for writing, and a week has passed since the
			last write.`,
		Objects: restoreObjects(),
		Flags:   slices.Concat(v.flags(), v.remote.cacheFlags(), v.remote.tlsFlags(), c.flagsWithProgress()),
		Hints: map[string]string{
			"-D": "the image is an argument: lazyrestore restore IMAGE", "--images-dir": "the image is an argument: lazyrestore restore IMAGE",
			"--lazy-pages": "a restore is lazy unless --eager says otherwise", "--lazy": "a restore is lazy unless --eager says otherwise",
			"-j": "terminals need no flag; see --stdio", "--shell-job": "terminals need no flag; see --stdio",
			"--restore-detached": "lazyrestore calls it --detach",
		},
		Examples: []cli.Example{
			{Line: "lazyrestore restore lazyrestore-4711", Does: "Run the process in the foreground and end as it ends."},
			{Line: "lazyrestore restore -d --pidfile job.pid lazyrestore-4711", Does: "Return once it runs; its pid is in job.pid."},
			{Line: "lazyrestore restore --cache /var/cache/lazyrestore tcp://node1,node2/lammps", Does: "Take image lammps from either server, and keep what comes for the next restore."},
		},
		Run: v.run,
	}
}

func restoreObjects() []cli.Object {
	return []cli.Object{{Of: "--json and --json-fd", Rows: `
		pid          the process, as it is seen here
		inner_pid    with --pid-ns: the same in its own pid namespace
		ttfi_us      microseconds until the first thread ran; 0 after a dry run
		mappings     how many mappings it has
		threads      how many threads it has
		lazy_bytes   what comes when it is touched, zero pages too
		eager_bytes  what was there before it ran
		warnings[]   what is not as it was, in words; left out if there are none`}, {Of: "--stats", Rows: `
		faults           how many touches waited for a page
		fault_p50_us     for how long, from when the pager had read of it: the median
		fault_p99_us     the 99th percentile
		fault_max_us     the longest
		fetched_bytes    plain bytes of the chunks that were read, some more than once
		received_bytes   bytes of the image that came from servers
		cached_bytes     bytes of the image that came from the cache
		installed_bytes  bytes of pages that were put into the process
		missing_bytes    bytes of pages that it still misses
		resident_ms      from the first instruction until all was there; 0: that was not reached
		outage_ms        for how long nothing could be had by now; 0: all is well
		stages.queue.mean_us   the part of the waiting before a page was looked for: on average
		stages.queue.p50_us    the median
		stages.queue.p99_us    the 99th percentile
		stages.fetch.mean_us   the part until its chunk was read
		stages.fetch.p50_us    the median
		stages.fetch.p99_us    the 99th percentile
		stages.decode.mean_us  the part until it was decoded
		stages.decode.p50_us   the median
		stages.decode.p99_us   the 99th percentile
		stages.copy.mean_us    the part until it was in place
		stages.copy.p50_us     the median
		stages.copy.p99_us     the 99th percentile`}}
}

func (v *restoreVerb) flags() []cli.Flag {
	o := &v.opts
	return []cli.Flag{
		{Name: "eager", Value: cli.Bool(&o.Eager), Usage: "Load all memory before the process runs"},
		{
			Name: "background", Arg: "full|none", Choices: []string{"full", "none"},
			Value: cli.Word(&o.Background, lazyrestore.BackgroundFull, lazyrestore.BackgroundNone),
			Usage: "Load all memory in the background, or only what is touched",
		},
		{Name: "detach", Short: 'd', Value: cli.Bool(&v.detach), Usage: "Return when the process runs and print its pid; the pager stays until all memory is there"},
		{
			Name: "on-lost", Arg: "wait|kill|poison", Choices: []string{"wait", "kill", "poison"},
			Value: cli.Word(&o.OnLost, lazyrestore.OnLostWait, lazyrestore.OnLostKill, lazyrestore.OnLostPoison),
			Usage: "What becomes of the process when its pages cannot be had: it waits for them, is killed, or gets SIGBUS where it touches them; the last two after 30 seconds",
		},
		{Name: "image-digest", Arg: "DIGEST", Value: verb.Digest(&o.Digest), Usage: "Refuse an image whose digest, as checkpoint printed it, is another"},
		{
			Name: "changed-files", Arg: "refuse|warn", Choices: []string{"refuse", "warn"},
			Value: cli.Word(&o.ChangedFiles, lazyrestore.ChangedRefuse, lazyrestore.ChangedWarn),
			Usage: "What to do if a file of the process is not as it was",
		},
		{
			Name: "stdio", Arg: "auto|saved|inherit", Choices: []string{"auto", "saved", "inherit"},
			Value: cli.Word(&o.Stdio, lazyrestore.StdioAuto, lazyrestore.StdioSaved, lazyrestore.StdioInherit),
			Usage: "Standard input, output and error of the process: files as saved and terminals and pipes from this command, all as saved (a terminal, under any number, is /dev/null then), or all from this command",
		},
		{
			Name: "pid-ns", Value: cli.Bool(&o.PIDNamespace),
			Usage: "Give the process a pid namespace of its own, in which it has its old pid, and a /proc of that, so that any number run at once",
		},
		{Name: "workers", Arg: "N", Value: cli.Int(&o.Workers, 1, verb.MostWorkers), Usage: "How many chunks are decoded at once; one for each CPU if not given"},
		{Name: "pidfile", Arg: "FILE", Value: cli.String(&v.pidfile), Operand: cli.OperandFile, Usage: "Write the pid to FILE once the process runs"},
		{Name: "stats", Arg: "FILE", Value: cli.String(&v.stats), Operand: cli.OperandFile, Usage: "Write the pager's statistics to FILE as JSON, when all memory is there or the process has ended"},
		{Name: "trace-file", Arg: "FILE", Value: cli.String(&v.trace), Operand: cli.OperandFile, Usage: "Write what the restore did when to FILE, for ui.perfetto.dev or chrome://tracing; at the time of --stats"},
		{Name: "json-fd", Arg: "N", Value: cli.Int(&v.jsonFD, 1, 1<<20), Usage: "Write the JSON object to descriptor N, where standard output is the process's own"},
		{Name: "dry-run", Short: 'n', Value: cli.Bool(&o.DryRun), Usage: "Only say whether the image can be restored here; start nothing"},
		{Name: reportFlag, Arg: "N", Value: cli.Int(&v.report, 3, 1<<20), Usage: "Report to descriptor N", Hidden: true},
	}
}

func (v *restoreVerb) run(args []string) error {
	v.image = args[0]
	if err := v.check(); err != nil {
		return err
	}
	switch {
	case v.opts.DryRun:
		return v.dryRun()
	case v.report != 0:
		return v.daemon()
	case v.detach:
		return v.launch()
	}
	err := v.foreground()
	var status verb.Status
	if err == nil || errors.As(err, &status) {
		return err
	}
	return &verb.ForegroundError{Err: err}
}

// check looks for flags that contradict each other.
func (v *restoreVerb) check() error {
	if err := v.remote.check(); err != nil {
		return err
	}
	v.opts.Source = v.remote.source()
	foreground := !v.detach && !v.opts.DryRun && v.report == 0
	switch {
	case foreground && v.JSON:
		return &cli.UsageError{
			Problem: "--json would write into the output of the process",
			Hint:    "--json-fd N writes to another descriptor, --stats FILE to a file; with --detach or --dry-run --json is fine",
		}
	case v.jsonFD != 0 && !foreground:
		return &cli.UsageError{Problem: "--json-fd is for a restore in the foreground", Hint: "write --json"}
	case v.detach && v.opts.DryRun:
		return &cli.UsageError{Problem: "--detach and --dry-run contradict each other", Hint: "give one of them"}
	case v.opts.Eager && v.opts.Background == lazyrestore.BackgroundNone:
		return &cli.UsageError{Problem: "--eager and --background=none contradict each other", Hint: "give one of them"}
	}
	return nil
}

// dryRun says whether the image could be restored here.
func (v *restoreVerb) dryRun() error {
	v.opts.Logger, v.opts.Terminal = v.Logger(v.Stderr), lazyrestore.OpenTerminal()
	p, err := restoreImage(context.Background(), v.image, v.opts)
	if err != nil {
		return verb.AboutImage(v.image, err)
	}
	result := p.Result()
	v.warn(result)
	if v.JSON {
		v.PrintJSON(result)
	} else if !v.Quiet {
		v.Print(fmt.Sprintf("image %s can be restored here: process %d, %s, %s of memory, %s of it eager\n", v.image,
			result.PID, plural(result.Threads, "thread"), sizeText(result.LazyBytes+result.EagerBytes), sizeText(result.EagerBytes)))
	}
	return nil
}

func (v *restoreVerb) warn(r lazyrestore.RestoreResult) {
	for _, w := range r.Warnings {
		v.Note("warning: " + w)
	}
}

// A supervised process runs, and this command looks after it.
type supervised struct {
	process
	verb  *restoreVerb
	stats *output
	trace *traceFile
}

// start restores the process and writes the files that tell of it.
func (v *restoreVerb) start(ctx context.Context, progress func(lazyrestore.Progress)) (*supervised, error) {
	pidfile, err := newOutput(v.pidfile)
	if err != nil {
		return nil, err
	}
	defer pidfile.discard()
	stats, err := newOutput(v.stats)
	if err != nil {
		return nil, err
	}
	trace, err := newTraceFile(v.trace)
	if err != nil {
		stats.discard()
		return nil, err
	}
	collectLate()
	v.opts.Progress, v.opts.Stages, v.opts.Trace = progress, stats != nil, trace.recorder()
	p, err := restoreImage(ctx, v.image, v.opts)
	if err != nil {
		stats.discard()
		v.noteError(trace.commit()) // it shows how far the restore came
		return nil, verb.AboutImage(v.image, err)
	}
	s := &supervised{process: p, verb: v, stats: stats, trace: trace}
	v.noteError(pidfile.commit(fmt.Appendln(nil, p.PID())))
	return s, nil
}

// noteError tells of a file that could not be written.
func (v *restoreVerb) noteError(err error) {
	if err != nil {
		v.Note("warning: " + err.Error())
	}
}

// writeStats writes the statistics and the trace, once.
func (s *supervised) writeStats() {
	s.verb.noteError(s.trace.commit())
	if s.stats == nil {
		return
	}
	var b strings.Builder
	err := verb.WriteJSON(&b, s.Stats())
	if err == nil {
		err = s.stats.commit([]byte(b.String()))
	}
	s.stats = nil
	s.verb.noteError(err)
}

// jsonFile is where --json-fd writes.
func (v *restoreVerb) jsonFile() (*os.File, error) {
	switch v.jsonFD {
	case 0:
		return nil, nil
	case 1:
		return os.Stdout, nil // another os.File of it would close it some day
	case 2:
		return os.Stderr, nil
	}
	f := os.NewFile(uintptr(v.jsonFD), "json-fd")
	if _, err := f.Stat(); err != nil {
		return nil, &cli.UsageError{Problem: fmt.Sprintf("--json-fd %d: the descriptor is not open", v.jsonFD), Hint: fmt.Sprintf("redirect it in the shell: %d>FILE", v.jsonFD)}
	}
	return f, nil
}
