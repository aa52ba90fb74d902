package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// The tests run this executable as the command itself where another user is to.
func TestMain(m *testing.M) {
	if os.Getenv("LAZYRESTORE_TEST_BENCH") != "" {
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
	}
	code := m.Run()
	if built != "" {
		os.RemoveAll(built)
	}
	os.Exit(code)
}

var built string // where the commands are built

// commands builds lazyrestore and lazyrestore-serve and gives the path of the first.
var commands = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "lazyrestore-bench-test-*")
	if err != nil {
		return "", err
	}
	built = dir
	if err := os.Chmod(dir, 0o777); err != nil { // for other users
		return "", err
	}
	cmd := exec.Command("go", "build", "-o", dir, "../lazyrestore", "../lazyrestore-serve")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", errors.New(string(out))
	}
	return filepath.Join(dir, "lazyrestore"), nil
})

// A result is what the tests read of the JSON object.
type result struct {
	Figures []struct {
		Name, Verdict, Error string
		Series               []struct {
			Subject, Measure, Error string
			Runs                    int
		}
	}
}

// failure is why a subject's row failed, "" if it did not.
func (r *result) failure(subject string) string {
	for _, s := range r.Figures[0].Series {
		if s.Subject == subject && s.Error != "" {
			return s.Error
		}
	}
	return ""
}

func (r *result) runs(subject, measure string) int {
	for _, s := range r.Figures[0].Series {
		if s.Subject == subject && s.Measure == measure {
			return s.Runs
		}
	}
	return -1
}

func (r *result) subjects() (list []string) {
	for _, s := range r.Figures[0].Series {
		list = append(list, s.Subject)
	}
	return list
}

// measure runs the command on a program and reads what it says.
func measure(t *testing.T, args ...string) (code int, r result) {
	t.Helper()
	uffdtest.Need(t, "root", "uffd", "ptrace", "cmd:gcc", "cmd:/usr/bin/python3")
	bin, err := commands()
	if err != nil {
		t.Fatal(err)
	}
	common := []string{"-q", "--json", "-n", "1", "--lazyrestore", bin, "--programs", filepath.Join(filepath.Dir(bin), "programs")}
	var stdout, stderr bytes.Buffer
	code = run(append(common, args...), &stdout, &stderr)
	if err := json.Unmarshal(stdout.Bytes(), &r); err != nil || len(r.Figures) != 1 {
		t.Fatalf("%v in %q; it said %q", err, &stdout, &stderr)
	}
	return code, r
}

// What goes wrong is said in the row of what went wrong, and the rest goes on.
func TestBadPrograms(t *testing.T) {
	tests := []struct {
		name    string
		args    []string
		subject string // whose row failed
		want    string // in its reason
		well    string // another one, whose row did not
	}{
		{"never ready", []string{"--ready-timeout", "300ms", "--", "sleep", "60"}, "ours-lazy", "--ready-timeout", ""},
		{"ends early", []string{"--", "sh", "-c", "echo oh no >&2; exit 3"}, "ours-lazy", "exit status 3", ""},
		{"other output", []string{"--ready", "^x", "--ready-timeout", "300ms", "--", "sh", "-c", "echo y; sleep 60"}, "cold start", "--ready", ""},
		{
			"cannot be checkpointed",
			[]string{"--criu", "/bin/false", "--", "sh", "-c", "sleep 600 & echo ready; wait"},
			"ours-lazy", "child process", "cold start",
		},
		{
			"cannot be checkpointed: io_uring",
			[]string{"--criu", "/bin/false", "--", "/usr/bin/python3", "-c", `
import ctypes, time
if ctypes.CDLL(None).syscall(425, 8, ctypes.create_string_buffer(256)) < 0: raise OSError("io_uring_setup")
print("ready", flush=True)
time.sleep(600)
`},
			"ours-lazy", "io_uring", "cold start",
		},
		{
			"more memory than there is",
			[]string{"--", "sh", "-c", "ulimit -v 200000; exec /usr/bin/python3 -c 'x = bytearray(1 << 30)'"},
			"ours-lazy", "MemoryError", "",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, r := measure(t, tt.args...)
			if code != 1 || r.Figures[0].Verdict != "failed" {
				t.Errorf("exit code %d, verdict %q: want it failed", code, r.Figures[0].Verdict)
			}
			if got := r.failure(tt.subject); !strings.Contains(got, tt.want) {
				t.Errorf("%s failed with %q, want %q in it; subjects %v", tt.subject, got, tt.want, r.subjects())
			}
			if tt.well != "" && r.failure(tt.well) != "" {
				t.Errorf("%s failed too: %s", tt.well, r.failure(tt.well))
			}
		})
	}
}

// An image that would not fit is not begun; who needs none is measured.
func TestNoRoom(t *testing.T) {
	uffdtest.Need(t, "root")
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=16m"); err != nil {
		t.Fatal(err)
	}
	defer syscall.Unmount(dir, syscall.MNT_DETACH)
	code, r := measure(t, "--criu", "/bin/false", "--dir", dir, "--disk", dir, "--", "/usr/bin/python3", "-c", `
import time
x = bytearray(b"x" * (64 << 20))
print("ready", flush=True)
time.sleep(600)
`)
	if got := r.failure("ours-lazy"); code != 1 || !strings.Contains(got, "would not fit") {
		t.Errorf("exit code %d, failure %q: want it not to fit", code, got)
	}
	if r.failure("cold start") != "" || r.runs("cold start", "first step") != 1 {
		t.Errorf("no cold start: %q", r.failure("cold start"))
	}
}

// A CRIU that does not work takes nobody's row but its own.
func TestBrokenCRIU(t *testing.T) {
	code, r := measure(t, "--criu", "/bin/false", "--ready", "^step 3$", "--", "/usr/bin/python3", "-c", `
import itertools, time
for i in itertools.count(1):
    print("step", i, flush=True)
    time.sleep(0.02)
`)
	if code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	if r.failure("criu-eager") == "" || r.failure("criu-lazy") == "" {
		t.Errorf("CRIU's rows did not fail: %+v", r)
	}
	for _, subject := range []string{"cold start", "ours-eager", "ours-lazy", "ours-lazy-disk", "ours-lazy-served", "ours-lazy-1Gbit"} {
		if why := r.failure(subject); why != "" || r.runs(subject, "first step") != 1 {
			t.Errorf("%s: %d runs, failure %q", subject, r.runs(subject, "first step"), why)
		}
		if n := r.runs(subject, "TTFI"); subject != "cold start" && n != 1 {
			t.Errorf("%s: %d times to the first instruction, want one", subject, n)
		}
	}
}

// A program that is not there, and a process.
func TestNothingThere(t *testing.T) {
	for _, args := range [][]string{{"--", "./no-such-program"}, {"--pid", "4194304"}} {
		code, r := measure(t, args...)
		if code != 1 || r.Figures[0].Error == "" {
			t.Errorf("%v: exit code %d, error %q", args, code, r.Figures[0].Error)
		}
	}
}

// A process is measured and goes on.
func TestPID(t *testing.T) {
	uffdtest.Need(t, "root", "uffd", "ptrace")
	cmd := exec.Command("sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	code, r := measure(t, "--criu", "/bin/false", "--copies", "--pid", strconv.Itoa(cmd.Process.Pid))
	if n := r.runs("ours-lz4-64KiB", "TTFI"); n != 1 {
		t.Errorf("%d copies, want one", n)
	}
	if n := r.runs("ours-lz4-64KiB", "checkpoint"); code != 1 || n != 1 || r.failure("criu") == "" {
		t.Errorf("exit code %d, %d checkpoints, CRIU's failure %q: want ours taken and CRIU's failed", code, n, r.failure("criu"))
	}
	if err := cmd.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the process after its checkpoints: %v", err)
	}
}

// Without privileges every row says so, but for the cold start.
func TestNobody(t *testing.T) {
	uffdtest.Need(t, "root", "uffd", "ptrace", "cmd:gcc")
	bin, err := commands()
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(filepath.Dir(bin), "lazyrestore-bench") // where that user may read it
	if err := os.WriteFile(own, text, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(own, "-q", "--json", "-n", "1", "--lazyrestore", bin, "--criu", "/bin/false",
		"--programs", filepath.Join(filepath.Dir(bin), "nobody"), "--", "python3", "-c", `import time; print("ready", flush=True); time.sleep(60)`)
	cmd.Env = append(os.Environ(), "LAZYRESTORE_TEST_BENCH=1")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.Output()
	var r result
	if jerr := json.Unmarshal(out, &r); jerr != nil || len(r.Figures) != 1 {
		t.Fatalf("%v, %v in %q", err, jerr, out)
	}
	if r.runs("cold start", "first step") != 1 {
		t.Errorf("no cold start: %s", r.failure("cold start"))
	}
	if why := r.failure("ours-lazy"); why == "" {
		t.Error("a restore without privileges did not fail")
	}
}

func TestUsage(t *testing.T) {
	tests := []struct {
		args []string
		want string
	}{
		{[]string{"nosuch"}, `no figure "nosuch"`},
		{[]string{"tffi"}, "did you mean ttfi?"},
		{[]string{"real", "nosuch"}, `no program "nosuch"`},
		{[]string{"ttfi", "--", "x"}, "one after the other"},
		{[]string{"--ready", "x", "ttfi"}, "--ready"},
		{[]string{"--ready", "(", "--", "x"}, "--ready"},
		{[]string{"--pid", "1", "--", "x"}, "contradict"},
		{[]string{"--copies"}, "--copies is for a process that runs"},
		{[]string{"--json", "--samples", "ttfi"}, "contradict"},
		{[]string{"--cache", "lukewarm"}, "warm"},
	}
	for _, tt := range tests {
		var stdout, stderr bytes.Buffer
		if code := run(tt.args, &stdout, &stderr); code != 2 || !strings.Contains(stderr.String(), tt.want) {
			t.Errorf("%v: exit code %d, %q; want 2 and %q", tt.args, code, &stderr, tt.want)
		}
	}
}

func TestList(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if code := run([]string{"--list"}, &stdout, &stderr); code != 0 {
		t.Fatalf("exit code %d: %s", code, &stderr)
	}
	for _, name := range []string{"ttfi", "residency", "latency", "growth-memory", "lammps"} {
		if !strings.Contains(stdout.String(), "\n"+name+" ") && !strings.HasPrefix(stdout.String(), name+" ") {
			t.Errorf("no %s in %q", name, &stdout)
		}
	}
}
