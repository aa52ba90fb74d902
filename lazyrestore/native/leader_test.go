package native

import (
	"bufio"
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// exitedLeader is a program whose first thread ends while another runs.
const exitedLeader = `
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>
static pthread_t first;
static void *other(void *unused) {
	pthread_join(first, NULL);
	puts("alone");
	fflush(stdout);
	sleep(60);
	return unused;
}
int main(void) {
	pthread_t t;
	first = pthread_self();
	pthread_create(&t, NULL, other, NULL);
	pthread_exit(NULL);
}
`

// Such a process is none that has ended: neither its state nor who has its id says so.
func TestRefusesExitedLeader(t *testing.T) {
	uffdtest.Need(t, "ptrace", "cmd:gcc")
	bin := filepath.Join(t.TempDir(), "leader")
	build := exec.Command("gcc", "-pthread", "-x", "c", "-o", bin, "-")
	build.Stdin = strings.NewReader(exitedLeader)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.Command(bin)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "alone\n" {
		t.Fatalf("the program says %q, %v", line, err)
	}
	f, err := Freeze(context.Background(), cmd.Process.Pid, 0)
	if err == nil {
		f.Release()
	}
	if !errors.Is(err, proc.ErrLeaderExited) {
		t.Errorf("%v, want %v", err, proc.ErrLeaderExited)
	}
	var r reasons
	r.taken(cmd.Process.Pid)
	if why, want := r.list[0].Why, "another process has it (leader)"; why != want {
		t.Errorf("its id is taken: %q, want %q", why, want)
	}
}
