package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// criu is CRIU, lazy with its own lazy-pages daemon or eager. Its images are
// uncompressed; it has no other.
type criu struct {
	argv []string
	lazy bool
}

// criuDefault is where bench/criu/install.sh puts it.
func criuDefault() string {
	cache, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(cache, "lazyrestore", "criu")
}

// ErrNoCRIU says that none is installed, and none was named.
var ErrNoCRIU = errors.New("no CRIU to compare with: bench/criu/install.sh installs one, --criu names one")

// criuFlags are those that it is run with, besides directories and logs.
const criuFlags = "dump -v1, restore -v1 [--lazy-pages], lazy-pages -v1"

// findCRIU gives the arguments that run CRIU. One that the script installed is
// run by its own loader directly: its wrapper is for people, and a shell would
// count as part of CRIU's time.
func findCRIU(where string) ([]string, error) {
	if where == "" {
		where = criuDefault()
		if _, err := os.Stat(where); err != nil {
			where, err = exec.LookPath("criu")
			if err != nil {
				return nil, ErrNoCRIU
			}
		}
	}
	where, err := filepath.Abs(where)
	if err != nil {
		return nil, fmt.Errorf("path of CRIU: %w", err)
	}
	root := filepath.Join(where, "root")
	if _, err := os.Stat(root); err != nil {
		return []string{where}, nil
	}
	libraries := root + "/lib/x86_64-linux-gnu:" + root + "/usr/lib/x86_64-linux-gnu"
	return []string{root + "/lib64/ld-linux-x86-64.so.2", "--library-path", libraries, root + "/usr/sbin/criu"}, nil
}

// criuVersion is what CRIU calls itself, and whether it has its kernel cache.
func criuVersion(argv []string) string {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	text, err := exec.CommandContext(ctx, argv[0], append(argv[1:], "--version")...).Output()
	if err != nil {
		return "CRIU that does not run: " + err.Error()
	}
	version, _, _ := strings.Cut(strings.TrimPrefix(string(text), "Version: "), "\n")
	if _, err := os.Stat("/run/criu.kdat"); err != nil {
		return "CRIU " + version + ", WITHOUT its kernel cache: its times are 25-35 ms too long"
	}
	return "CRIU " + version + ", with its kernel cache"
}

func (c *criu) Name() string {
	if c.lazy {
		return "criu-lazy"
	}
	return "criu-eager"
}

func (c *criu) Format() string { return "criu" }

func (c *criu) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, c.argv[0], append(c.argv[1:], args...)...)
}

func (c *criu) Checkpoint(ctx context.Context, pid int, dir string, leave bool) *exec.Cmd {
	args := []string{"dump", "-v1", "-o", "dump.log", "-D", dir, "-t", fmt.Sprint(pid)}
	if leave {
		args = append(args, "--leave-running")
	}
	return c.command(ctx, args...)
}

// Prepare starts the lazy-pages daemon and waits until it listens.
func (c *criu) Prepare(ctx context.Context, dir string) ([]*command, error) {
	if !c.lazy {
		return nil, nil
	}
	ready, status, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("pipe for CRIU's status: %w", err)
	}
	defer ready.Close()
	cmd := c.command(ctx, "lazy-pages", "-v1", "-o", "lazy-pages.log", "-D", dir, "--status-fd", "3")
	cmd.ExtraFiles = []*os.File{status}
	daemon, err := launch("criu lazy-pages", cmd)
	status.Close()
	if err != nil {
		return nil, err
	}
	helpers := []*command{daemon}
	if err := ready.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return helpers, fmt.Errorf("wait for criu lazy-pages: %w", err)
	}
	if _, err := ready.Read(make([]byte, 1)); err != nil {
		return helpers, fmt.Errorf("wait for criu lazy-pages: %w: %s", err, daemon.said)
	}
	return helpers, nil
}

func (c *criu) Restore(ctx context.Context, dir string) *exec.Cmd {
	args := []string{"restore", "-v1", "-o", "restore.log", "-D", dir}
	if c.lazy {
		args = append(args, "--lazy-pages")
	}
	return c.command(ctx, args...)
}
