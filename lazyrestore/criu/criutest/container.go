package criutest

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// NeedRunc skips the test where no container can be run, dumped and restored.
func NeedRunc(t testing.TB) {
	t.Helper()
	Need(t)
	uffdtest.Need(t, "cmd:runc")
}

// A Container is a subject that runc runs, with a file system and namespaces of
// its own.
type Container struct {
	Subject
	id, bundle, state string
}

// StartContainer is Start in a container. It has the network of the machine:
// to dump a network of its own CRIU wants iptables.
func StartContainer(t testing.TB, scene string, mib int) *Container {
	t.Helper()
	root := t.TempDir()
	c := &Container{id: "lazyrestore-" + strconv.Itoa(os.Getpid()) + "-" + scene, bundle: filepath.Join(root, "bundle"), state: filepath.Join(root, "state")}
	rootfs := filepath.Join(c.bundle, "rootfs")
	c.dir = filepath.Join(rootfs, "tmp")
	for _, d := range []string{"tmp", "proc", "dev", "sys"} {
		if err := os.MkdirAll(filepath.Join(rootfs, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := program(); err != nil { // it has a directory now
		t.Fatal(err)
	}
	if err := build(filepath.Join(rootfs, "subject"), "-static"); err != nil {
		t.Fatal(err)
	}
	c.configure(t, "/subject", scene, "/tmp", strconv.Itoa(mib))
	t.Cleanup(func() { _ = c.command("delete", "--force", c.id).Run() })
	c.run(t, "run", "--detach", "--bundle", c.bundle, "--pid-file", c.pidFile(), c.id)
	c.readPid(t)
	c.Await(t, "ready")
	return c
}

func (c *Container) pidFile() string { return filepath.Join(c.bundle, "pid") }

// configure has runc write its own example, and changes what must be.
func (c *Container) configure(t testing.TB, argv ...string) {
	t.Helper()
	c.run(t, "spec", "--bundle", c.bundle)
	path := filepath.Join(c.bundle, "config.json")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var config map[string]any
	if err := json.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	process, _ := config["process"].(map[string]any)
	process["terminal"], process["args"] = false, argv
	root, _ := config["root"].(map[string]any)
	root["readonly"] = false
	linux, _ := config["linux"].(map[string]any)
	var spaces []any
	for _, s := range linux["namespaces"].([]any) {
		if kind, _ := s.(map[string]any)["type"].(string); kind != "network" {
			spaces = append(spaces, s)
		}
	}
	linux["namespaces"] = spaces
	if text, err = json.Marshal(config); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// command is a runc command, which finds our CRIU as criu in PATH.
func (c *Container) command(args ...string) *exec.Cmd {
	cmd := exec.Command("runc", append([]string{"--root", c.state}, args...)...)
	cmd.Env = os.Environ()
	if argv, err := find(); err == nil {
		cmd.Env = append(cmd.Env, "PATH="+filepath.Dir(argv[0])+":"+os.Getenv("PATH"))
	}
	return cmd
}

// run runs a runc command to its end, which must be a good one. Its standard
// streams, which the container gets, are /dev/null: CRIU does not dump files
// from outside.
func (c *Container) run(t testing.TB, args ...string) {
	t.Helper()
	log := filepath.Join(c.bundle, "runc.log")
	cmd := c.command(append([]string{"--log", log}, args...)...)
	timer := time.AfterFunc(Patience, func() {
		if cmd.Process != nil {
			_ = cmd.Process.Kill()
		}
	})
	defer timer.Stop()
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(log)
		t.Fatalf("runc %q: %v\n%s", args, err, tail(text))
	}
}

func (c *Container) readPid(t testing.TB) {
	t.Helper()
	text, err := os.ReadFile(c.pidFile())
	if err == nil {
		c.Pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Checkpoint has runc dump the container, which ends it.
func (c *Container) Checkpoint(t testing.TB, images, work string) {
	t.Helper()
	c.run(t, "checkpoint", "--image-path", images, "--work-path", work, c.id)
	_, _ = unix.Wait4(c.Pid, nil, 0, nil)
}

// Restore has runc restore it, lazily, and run on as our child.
func (c *Container) Restore(t testing.TB, images, work string) {
	t.Helper()
	defer func() {
		if t.Failed() {
			text, _ := os.ReadFile(filepath.Join(work, "restore.log"))
			t.Logf("restore.log: %s", bytes.TrimSpace(tail(text)))
		}
	}()
	c.run(t, "restore", "--detach", "--lazy-pages", "--image-path", images, "--work-path", work,
		"--bundle", c.bundle, "--pid-file", c.pidFile(), c.id)
	c.readPid(t)
}
