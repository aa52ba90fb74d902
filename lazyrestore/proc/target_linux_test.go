package proc

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// target is a running testdata/target.c.
type target struct {
	t      *testing.T
	cmd    *exec.Cmd
	out    *bufio.Reader
	counts uint64 // address of the counters
	stride int
	n      int // threads, the first one included
}

// compile makes a program of a C file in testdata.
func compile(t *testing.T, source string, flags ...string) string {
	t.Helper()
	uffdtest.Need(t, "cmd:gcc")
	bin := filepath.Join(t.TempDir(), strings.TrimSuffix(source, ".c"))
	args := append([]string{"-O2", "-pthread", "-o", bin, filepath.Join("testdata", source)}, flags...)
	if out, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	return bin
}

// startTarget starts the program with a thread of each kind.
func startTarget(t *testing.T, bin string, kinds ...string) *target {
	t.Helper()
	p := &target{t: t, cmd: exec.Command(bin, kinds...), n: len(kinds) + 1}
	if len(kinds) > 0 && kinds[0] == "lenient" {
		p.n--
	}
	p.cmd.Stderr = os.Stderr
	pipe, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	p.out = bufio.NewReader(pipe)
	line, err := p.out.ReadString('\n')
	if _, serr := fmt.Sscanf(line, "%x %d", &p.counts, &p.stride); serr != nil {
		t.Fatalf("target said %q: %v, %v", line, err, serr)
	}
	return p
}

func (p *target) pid() int { return p.cmd.Process.Pid }

func (p *target) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// count reads the counters of all threads.
func (p *target) count() []uint64 {
	p.t.Helper()
	b := make([]byte, 8*p.stride*p.n)
	if _, err := ReadMemory(p.pid(), p.counts, b); err != nil {
		p.t.Fatalf("target: %v; it said: %s", err, p.said())
	}
	c := make([]uint64, p.n)
	for i := range c {
		c[i] = binary.LittleEndian.Uint64(b[8*p.stride*i:])
	}
	return c
}

// said is what a target that has ended wrote.
func (p *target) said() string {
	line, _ := p.out.ReadString('\n')
	return line
}

// waitProgress waits until every thread whose kind makes progress has counted
// a few times more.
func (p *target) waitProgress(skip ...int) {
	p.t.Helper()
	start := p.count()
	deadline := time.Now().Add(20 * time.Second)
next:
	for {
		c := p.count()
		for i := range c {
			if c[i] < start[i]+3 && !contains(skip, i) {
				if time.Now().After(deadline) {
					st, _ := ReadStatus(p.pid())
					p.t.Fatalf("no progress: %v, then %v; state %c", start, c, st.State)
				}
				ts := unix.NsecToTimespec(int64(time.Millisecond))
				_ = unix.Nanosleep(&ts, nil)
				continue next
			}
		}
		return
	}
}

// waitThreads waits until every thread has told the kernel what the C library
// tells it of a thread that begins; its robust list is the last of that.
func (p *target) waitThreads() {
	p.t.Helper()
	tids, err := ReadTasks(p.pid())
	if err != nil {
		p.t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for _, tid := range tids {
		for {
			head, _, err := RobustList(tid)
			if err == nil && head != 0 {
				break
			}
			if time.Now().After(deadline) {
				p.t.Fatalf("thread %d: robust list %#x, %v", tid, head, err)
			}
			ts := unix.NsecToTimespec(int64(time.Millisecond))
			_ = unix.Nanosleep(&ts, nil)
		}
	}
}

func contains(list []int, v int) bool {
	for _, x := range list {
		if x == v {
			return true
		}
	}
	return false
}
