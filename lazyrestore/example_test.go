package lazyrestore_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore"
)

// A running process is written to an image, and runs on.
func ExampleCheckpoint() {
	dir, err := os.MkdirTemp("", "example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	program := exec.Command("sleep", "1000")
	if err := program.Start(); err != nil {
		log.Fatal(err)
	}
	defer program.Wait()
	defer program.Process.Kill()

	result, err := lazyrestore.Checkpoint(context.Background(), program.Process.Pid, lazyrestore.CheckpointOptions{
		Dir: filepath.Join(dir, "image"), Codec: "lz4", LeaveRunning: true,
	})
	var refused *lazyrestore.RefusedError
	switch {
	case errors.As(err, &refused): // it runs on, and there is no image
		for _, r := range refused.Reasons {
			log.Println(r.What, r.Why, r.Help)
		}
		return
	case err != nil:
		log.Fatal(err)
	}
	fmt.Println("threads:", result.Threads)
	fmt.Println("runs on:", program.Process.Signal(unix.Signal(0)) == nil)
	// Output:
	// threads: 1
	// runs on: true
}

// A process is ended by its checkpoint, and comes back with its old id.
func ExampleRestore() {
	dir, err := os.MkdirTemp("", "example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	image := filepath.Join(dir, "image")
	program := exec.Command("sleep", "1000")
	if err := program.Start(); err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	saved, err := lazyrestore.Checkpoint(ctx, program.Process.Pid, lazyrestore.CheckpointOptions{Dir: image})
	if err != nil {
		program.Process.Kill()
		log.Fatal(err)
	}
	program.Wait() // its id is taken as long as nobody has waited for it

	p, err := lazyrestore.Restore(ctx, image, lazyrestore.RestoreOptions{Digest: saved.Digest})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("the same id:", p.PID() == program.Process.Pid)
	<-p.Resident() // all of its memory is there; it has been running all along

	if err := p.Signal(unix.SIGTERM); err != nil {
		log.Fatal(err)
	}
	status, err := p.Wait()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("it ended:", status.Signal())
	if err := p.Close(); err != nil {
		log.Fatal(err)
	}
	// Output:
	// the same id: true
	// it ended: terminated
}
