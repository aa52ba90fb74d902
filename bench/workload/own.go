package workload

import (
	"context"
	"debug/elf"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
)

// OwnOptions describe a program of the user's.
type OwnOptions struct {
	// Args is the command. It runs in the directory of the caller.
	Args []string
	// Ready matches the output of the program in the middle of its work; nil
	// is any output.
	Ready *regexp.Regexp
}

// Own is a program of the user's. It is in the middle of its work once its
// output matches; a step is a line of output. Where it is linked dynamically a
// thread that reads the clock is loaded into it; else its first instruction is
// Unseen.
func (b *Builder) Own(ctx context.Context, opts OwnOptions) (*Program, error) {
	path, err := exec.LookPath(opts.Args[0])
	if err != nil {
		return nil, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, fmt.Errorf("path of the program: %w", err)
	}
	p := &Program{
		Name:   filepath.Base(path),
		Args:   append([]string{path}, opts.Args[1:]...),
		InHere: true,
		Ready:  opts.Ready,
		Result: resultLine,
		Step:   regexp.MustCompile(`(?m)^.*\n`),
	}
	if p.Ready == nil {
		p.Ready = p.Step
	}
	if p.Unseen = !dynamic(path); p.Unseen {
		return p, nil
	}
	p.Env, err = b.stamps(ctx)
	return p, err
}

// dynamic reports whether the loader runs for the executable, which loads the
// thread that reads the clock. A script's interpreter is taken to be so.
func dynamic(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return true
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return true
		}
	}
	return false
}
