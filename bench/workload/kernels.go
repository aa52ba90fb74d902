package workload

import (
	"context"
	"regexp"
	"strconv"
)

// Kernels are the names that Kernel takes.
func Kernels() []string { return []string{"stencil", "gups", "stream", "solver"} }

// stepEnd is a line of a program that says when a step was done.
var stepEnd = regexp.MustCompile(`(?m)^step [0-9]+ end_ns=[0-9]+.*$`)

// Kernel is a loop of c/kernels.c, by its name. Zero values: 256 MiB, and steps
// without end. It is ready after a few steps.
func (b *Builder) Kernel(ctx context.Context, name string, mib, steps int) (*Program, error) {
	bin, err := b.C(ctx, "kernels")
	if err != nil {
		return nil, err
	}
	args := []string{bin, "-k", name, "-s", strconv.Itoa(orDefault(mib, 256))}
	if steps > 0 {
		args = append(args, "-n", strconv.Itoa(steps))
	}
	return &Program{
		Name:   name,
		Args:   args,
		Ready:  regexp.MustCompile(`(?m)^step 6 .*$`),
		Result: resultLine,
		Step:   stepEnd,
	}, nil
}

// Service is python/service.py: NumPy answering requests. Zero is 256 MiB.
func (b *Builder) Service(ctx context.Context, mib int) (*Program, error) {
	if err := haveNumPy(ctx); err != nil {
		return nil, err
	}
	script, err := b.File("python/service.py")
	if err != nil {
		return nil, err
	}
	stamps, err := b.stamps(ctx)
	if err != nil {
		return nil, err
	}
	return &Program{
		Name:      "service",
		Args:      []string{python, script, "--mib", strconv.Itoa(orDefault(mib, 256))},
		Env:       stamps,
		Ready:     regexp.MustCompile(`(?m)^ready$`),
		Result:    resultLine, // it has none
		Step:      stepEnd,
		OnRequest: true,
	}, nil
}
