package native

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// registered is a program that has its memory, all of which is there, registered with a
// userfaultfd, whose number it says. At a signal it closes that, and its output.
const registered = `
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
enum { SIZE = 1 << 16 };
int main(void) {
	sigset_t set;
	int sig;
	syscall(SYS_close_range, 3, ~0U, 0); /* what the test has from its own parent */
	char *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int u = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register all = {.range = {(uintptr_t)memory, SIZE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	memset(memory, 1, SIZE);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	if (u < 0 || ioctl(u, UFFDIO_API, &api) || ioctl(u, UFFDIO_REGISTER, &all))
		return 1;
	printf("%d\n", u);
	fflush(stdout);
	sigwait(&set, &sig);
	close(u);
	close(1);
	for (;;)
		pause();
}
`

// startRegistered starts the program. held is the userfaultfd, whoever else has it; alone
// has the program close its own.
func startRegistered(t *testing.T) (pid, held int, alone func()) {
	t.Helper()
	uffdtest.Need(t, "ptrace", "uffd", "cmd:gcc")
	bin := filepath.Join(t.TempDir(), "registered")
	build := exec.Command("gcc", "-D_GNU_SOURCE", "-x", "c", "-o", bin, "-")
	build.Stdin = strings.NewReader(registered)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.Command(bin)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	out := bufio.NewReader(pipe)
	line, err := out.ReadString('\n')
	number, nerr := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || nerr != nil {
		t.Fatalf("the program says %q, %v", line, err)
	}
	pidfd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	if held, err = unix.PidfdGetfd(pidfd, number, 0); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid, held, func() {
		t.Helper()
		if err := cmd.Process.Signal(unix.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		if rest, err := io.ReadAll(out); err != nil || len(rest) > 0 {
			t.Fatalf("the program says %q, %v", rest, err)
		}
	}
}

// askedContext is a context that tells when it is asked whether it has ended.
type askedContext struct {
	context.Context
	tell func()
}

func (c askedContext) Err() error {
	c.tell()
	return nil
}

// A userfaultfd that somebody has open a moment longer than the pager is waited for, and
// one that stays open is a reason to refuse.
func TestCaptureAwaitsWhatIsLetGo(t *testing.T) {
	for _, stays := range []bool{false, true} {
		t.Run("stays="+strconv.FormatBool(stays), func(t *testing.T) {
			pid, held, alone := startRegistered(t)
			alone()
			letGo := sync.OnceFunc(func() { unix.Close(held) })
			defer letGo()
			f, err := Freeze(t.Context(), pid, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Release()
			looks := 0
			err = f.Capture(askedContext{context.Background(), func() {
				if looks++; !stays {
					letGo() // when it was seen to be open
				}
			}}, Owed{})
			var refused *RefusedError
			switch {
			case !stays && err != nil:
				t.Error(err)
			case stays && (!errors.As(err, &refused) || !strings.Contains(err.Error(), "no pager of ours answers")):
				t.Errorf("%v, want that no pager answers", err)
			case looks == 0:
				t.Error("it was not looked at anew")
			}
		})
	}
}

// What a process holds itself is not let go while it stands still.
func TestOwnUserfaultfdIsNotAwaited(t *testing.T) {
	pid, held, alone := startRegistered(t)
	unix.Close(held)
	f, err := Freeze(t.Context(), pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Release()
	if err := f.fromProc(); err != nil {
		t.Fatal(err)
	}
	if !f.c.registered || f.mayBeLetGo(&Owed{}) {
		t.Errorf("memory is registered: %v, its userfaultfd may be let go: %v", f.c.registered, f.mayBeLetGo(&Owed{}))
	}
	f.Release()
	alone()
}
