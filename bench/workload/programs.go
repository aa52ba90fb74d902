package workload

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
)

// A Program is a command that keeps this package's protocol.
type Program struct {
	Name string
	// Args is the command with its arguments, Env what it has besides the
	// environment of the caller.
	Args, Env []string
	// Ready matches the output of a program in the middle of its work,
	// Result the lines that the result consists of.
	Ready, Result *regexp.Regexp
	// Step matches the lines that say that a piece of work is done; nil where a
	// program has none. One with "end_ns=T" in it was done at T, by the real-time
	// clock. OnRequest says that a step is done for each SIGUSR1.
	Step      *regexp.Regexp
	OnRequest bool
	// InHere has it run in the caller's directory; its output still goes to its
	// own. Unseen says that it does not read the clock for the harness.
	InHere, Unseen bool
}

var (
	resultLine = regexp.MustCompile(`(?m)^result .*$`)
	stepLine   = func(n int) *regexp.Regexp {
		return regexp.MustCompile(`(?m)^step ` + strconv.Itoa(n) + `$`)
	}
)

// MappingsOptions describe the memory of Mappings. Zero values: 100 mappings,
// 256 MiB, 2,000 touches.
type MappingsOptions struct {
	Mappings, MiB int
	// Touches is how many random pages are touched, each timed, on SIGUSR1;
	// below zero none. All pages are touched once after them.
	Touches int
	// Threads is how many threads sleep besides.
	Threads int
	// Descriptors is how many descriptors of all kinds are open besides.
	Descriptors int
	// Asleep has it wait for its signals asleep, where it reads the clock else.
	Asleep bool
}

// Mappings is c/mappings.c: memory in many mappings. It runs until SIGUSR2;
// its result comes after SIGUSR1 and is "result ok" while all its memory holds
// what it should.
func (b *Builder) Mappings(ctx context.Context, opts MappingsOptions) (*Program, error) {
	bin, err := b.C(ctx, "mappings")
	if err != nil {
		return nil, err
	}
	opts.Mappings = orDefault(opts.Mappings, 100)
	opts.MiB = orDefault(opts.MiB, 256)
	opts.Touches = max(orDefault(opts.Touches, 2000), 0)
	args := []string{
		bin, "-m", strconv.Itoa(opts.Mappings), "-s", strconv.Itoa(opts.MiB),
		"-t", strconv.Itoa(opts.Touches), "-j", strconv.Itoa(opts.Threads), "-d", strconv.Itoa(opts.Descriptors),
	}
	if opts.Asleep {
		args = append(args, "-w")
	}
	return &Program{
		Name:   fmt.Sprintf("mappings%d-%dMiB", opts.Mappings, opts.MiB),
		Args:   args,
		Ready:  regexp.MustCompile(`(?m)^ready$`),
		Result: resultLine,
	}, nil
}

// Threads is c/threads.c: eight threads whose state is in vector registers.
// Zero steps are 200, which take some 20 s of one core's time a GHz.
func (b *Builder) Threads(ctx context.Context, steps int) (*Program, error) {
	bin, err := b.C(ctx, "threads")
	if err != nil {
		return nil, err
	}
	stamps, err := b.stamps(ctx)
	if err != nil {
		return nil, err
	}
	steps = orDefault(steps, 200)
	return &Program{
		Name:   "threads",
		Args:   []string{bin, "-n", strconv.Itoa(steps)},
		Env:    stamps,
		Ready:  stepLine(max(steps/4, 1)),
		Result: resultLine,
	}, nil
}

// GCLoad is gcload/main.go: a Go program whose collector has work.
// Zero values: 256 MiB, 100 steps.
func (b *Builder) GCLoad(ctx context.Context, mib, steps int) (*Program, error) {
	bin, err := b.GoProgram(ctx, "gcload")
	if err != nil {
		return nil, err
	}
	steps = orDefault(steps, 100)
	return &Program{
		Name:   "gcload",
		Args:   []string{bin, "-mib", strconv.Itoa(orDefault(mib, 256)), "-steps", strconv.Itoa(steps)},
		Env:    []string{stampVariable + stampFile},
		Ready:  stepLine(max(steps/4, 1)),
		Result: resultLine,
	}, nil
}

// python is the distribution's, which has the distribution's NumPy.
const python = "/usr/bin/python3"

// haveNumPy is an error where it is not installed.
func haveNumPy(ctx context.Context) error {
	if out, err := exec.CommandContext(ctx, python, "-c", "import numpy").CombinedOutput(); err != nil {
		return &MissingError{Program: "NumPy", Hint: "bench/workload/install.sh numpy", Err: fmt.Errorf("%w: %s", err, out)}
	}
	return nil
}

// Arrays is python/arrays.py: NumPy with the threads of BLAS, in the
// distribution's Python. Zero values: 1,024 MiB, 100 steps.
func (b *Builder) Arrays(ctx context.Context, mib, steps int) (*Program, error) {
	if err := haveNumPy(ctx); err != nil {
		return nil, err
	}
	script, err := b.File("python/arrays.py")
	if err != nil {
		return nil, err
	}
	stamps, err := b.stamps(ctx)
	if err != nil {
		return nil, err
	}
	steps = orDefault(steps, 100)
	return &Program{
		Name: "numpy",
		Args: []string{python, script, "--mib", strconv.Itoa(orDefault(mib, 1024)), "--steps", strconv.Itoa(steps)},
		// One number of threads, one order of additions, one result.
		Env:    append(stamps, "OPENBLAS_NUM_THREADS=2", "OMP_NUM_THREADS=2"),
		Ready:  stepLine(max(steps/4, 1)),
		Result: resultLine,
	}, nil
}

// LAMMPSOptions set the length of a run of LAMMPS. Zero values: size 40
// (256,000 atoms), 1,000 steps, a line of output for each, ready at step 20 or
// a quarter of them.
type LAMMPSOptions struct {
	Size, Steps, Every, Ready int
}

// thermoLine is a line of LAMMPS's thermodynamic output.
const thermoLine = `(?m)^ +[0-9]+( +-?[0-9.]+(e[-+]?[0-9]+)?){5} *$`

// LAMMPS is lammps/in.lj with the distribution's LAMMPS, in one process. Its
// result is its thermodynamic output, each line to the last digit.
func (b *Builder) LAMMPS(ctx context.Context, opts LAMMPSOptions) (*Program, error) {
	bin, err := exec.LookPath("lmp")
	if err != nil {
		return nil, &MissingError{Program: "LAMMPS", Hint: "bench/workload/install.sh lammps", Err: err}
	}
	input, err := b.File("lammps/in.lj")
	if err != nil {
		return nil, err
	}
	stamps, err := b.stamps(ctx)
	if err != nil {
		return nil, err
	}
	opts.Size, opts.Steps, opts.Every = orDefault(opts.Size, 40), orDefault(opts.Steps, 1000), orDefault(opts.Every, 1)
	ready := orDefault(opts.Ready, min(opts.Steps/4, 20))
	first := strconv.Itoa(max(ready/opts.Every, 1) * opts.Every)
	return &Program{
		Name: "lammps",
		Args: []string{
			bin, "-in", input, "-log", "none", "-var", "size", strconv.Itoa(opts.Size),
			"-var", "steps", strconv.Itoa(opts.Steps), "-var", "every", strconv.Itoa(opts.Every),
		},
		Env:    append(append(stamps, "OMP_NUM_THREADS=1"), oneProcess...),
		Ready:  regexp.MustCompile(`(?m)^ +` + first + ` .*$`),
		Result: regexp.MustCompile(thermoLine),
		Step:   regexp.MustCompile(thermoLine),
	}, nil
}

// stampFile is where a program writes its clock readings, in its directory.
const stampFile = "stamp"

// stampVariable names the file to programs that do not know it.
const stampVariable = "LAZYRESTORE_STAMP="

// stamps is the environment that makes a program of others read the clock, in
// a thread that is loaded into it.
func (b *Builder) stamps(ctx context.Context) ([]string, error) {
	object, err := b.C(ctx, "stamp.so")
	if err != nil {
		return nil, err
	}
	return []string{"LD_PRELOAD=" + object, stampVariable + stampFile}, nil
}

// oneProcess makes a program of Open MPI run without mpirun and without a
// daemon: all that it is lies in one process.
var oneProcess = []string{
	"OMPI_MCA_ess_singleton_isolated=1", "OMPI_MCA_btl=self", "OMPI_MCA_pml=ob1",
	"OMPI_MCA_oob=^tcp,usock", "OMPI_MCA_pmix=isolated",
	"OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
}

// A MissingError says that a program of the distribution is not installed.
type MissingError struct {
	Program string
	// Hint is the command that installs it.
	Hint string
	Err  error
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("%s is not installed (%s installs it): %s", e.Program, e.Hint, strings.TrimSpace(e.Err.Error()))
}

func (e *MissingError) Unwrap() error { return e.Err }

// environment is the caller's, with env over it.
func environment(env []string) []string { return append(os.Environ(), env...) }

func orDefault(v, otherwise int) int {
	if v == 0 {
		return otherwise
	}
	return v
}
