package harness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"
)

// A copied program is one of several that were restored of one image at once,
// each in a pid namespace of its own. All of them write into the same files, so
// none can be told by its clock readings: it runs when its command says so.
type copied struct {
	restore *command
	process *handle
	took    time.Duration // from the start of the command until the program ran
}

// copy restores the image at a place, a directory or an address, beside whatever
// runs of it already, and waits until that runs.
func (e *Env) copy(ctx context.Context, image string, flags ...string) (*copied, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer read.Close()
	args := append([]string{"restore", "--pid-ns", "--stdio=saved", "--json-fd", "3"}, flags...)
	cmd := exec.CommandContext(ctx, e.opts.Lazyrestore, append(args, image)...)
	cmd.ExtraFiles = []*os.File{write}
	c := &copied{}
	c.restore, err = launch("restore", cmd)
	write.Close()
	if err != nil {
		return nil, err
	}
	var said struct{ PID int }
	err = json.NewDecoder(read).Decode(&said)
	c.took = time.Since(c.restore.began)
	if err == nil && said.PID != 0 {
		c.process, err = holdDescendant(said.PID)
	} else {
		err = c.restore.wait(ctx) // what it said was of a failure
		err = errors.Join(err, errors.New("restore: it did not say that the program runs"))
	}
	if err != nil {
		return nil, errors.Join(err, c.restore.Stop())
	}
	return c, nil
}

// end ends the program, and its command with it.
func (c *copied) end() error {
	if c == nil {
		return nil
	}
	return errors.Join(c.process.end(), c.restore.settle())
}

// copies restores one image several times at once, and waits until all run, or
// one failed.
func copies(n int, restore func(i int) (*copied, error)) ([]*copied, error) {
	type outcome struct {
		c   *copied
		err error
	}
	outcomes := make(chan outcome, n)
	for i := range n {
		go func() {
			c, err := restore(i)
			outcomes <- outcome{c, err}
		}()
	}
	var all []*copied
	var failed []error
	for range n {
		o := <-outcomes
		if o.c != nil {
			all = append(all, o.c)
		}
		failed = append(failed, o.err)
	}
	if err := errors.Join(failed...); err != nil {
		return nil, errors.Join(fmt.Errorf("%d at once: %w", n, err), endAll(all))
	}
	return all, nil
}

func endAll(all []*copied) error {
	var failed []error
	for _, c := range all {
		failed = append(failed, c.end())
	}
	return errors.Join(failed...)
}

// ttfiOfCopies restores one image several times at once and gives the time
// until the last one runs, in nanoseconds.
func (e *Env) ttfiOfCopies(ctx context.Context, img *image, n int) (float64, error) {
	all, err := copies(n, func(int) (*copied, error) { return e.copy(ctx, img.dir) })
	if err != nil {
		return 0, err
	}
	longest := time.Duration(0)
	for _, c := range all {
		longest = max(longest, c.took)
	}
	return float64(longest.Nanoseconds()), endAll(all)
}
