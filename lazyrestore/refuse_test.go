package lazyrestore_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// refusals are scenes that no image can hold, with what the message has to
// name.
var refusals = []struct{ scene, names string }{
	{"tcp", `descriptor \d+ \(socket:\[\d+\]\): it is connected.*descriptor \d+ \(socket:\[\d+\]\): it is connected`},
	{"socket-rights", `descriptor \d+ \(socket:.*it has state that is not preserved: scm_fds: 1`},
	{"proc-of-other", `working directory /proc/1: it is about another process.*descriptor 3 \(/proc/\d+/stat\): it is about another process.*descriptor 4 \(/proc/1\): it is about another process`},
	{"netlink", `descriptor \d+ \(socket:.*sockets of this type \(family 16\)`},
	{"pending-connection", `descriptor \d+ \(socket:.*1 connections were not accepted yet`},
	{"peek-offset", `(?s)descriptor \d+ \(socket:.*: what is queued in it is being read ahead.*descriptor \d+ \(socket:.*: what is queued in it is being read ahead`},
	{"empty-to-name", `descriptor \d+ \(socket:.*: it has messages that were not read`},
	{"ended-connection", `descriptor \d+ \(socket:.*: its connection has ended, or it was shut down`},
	{"refused-connection", `descriptor \d+ \(socket:.*: it has an error that was not read`},
	{"unread-error", `descriptor \d+ \(socket:.*: it has an error that was not read`},
	{"corked", `descriptor \d+ \(socket:.*: it has a packet that was not sent`},
	{"multicast-address", `descriptor \d+ \(socket:.*: a restore could not set option 32 of level 0 of a socket: cannot assign requested address`},
	{"child", `child process \d+`},
	{"seccomp", `seccomp`},
	{"thread-seccomp", `thread \d+: it has system call filters`},
	{"thread-namespace", `thread \d+: it has a uts namespace of its own`},
	{"thread-itself", `(?s)thread \d+: it has no_new_privs.*thread \d+: it has another personality`},
	{"deny-write-execute", `PR_SET_MDWE`},
	{"descriptor-table", `local descriptor table`},
	{"many-things", `(?s)child process.*SYSV.*descriptor \d+ \(socket.*namespace of its own.*local descriptor table`},
	{"thread-cpu-timer", `POSIX timer 0.*CPU time of a thread`},
	{"userfaultfd", `descriptor \d+ \(anon_inode:\[userfaultfd\]\)`},
	{"io-uring", `descriptor \d+ \(anon_inode:\[io_uring\]\)`},
	{"io-uring-registered", `thread \d+: it has an io_uring, without a descriptor.*thread \d+: it has an io_uring`},
	{"sysv", `/SYSV`},
	{"guard-shared", `guard region .*: it lies in shared memory`},
	{"removed-directory", `working directory .*/removed`},
	{"namespace", `namespace uts:`},
	{"pid-namespace", `namespace pid`},
	{"aio", `asynchronous`},
	{"packet-pipe", `packets`},
	{"inotify-unread", `descriptor 3 \(anon_inode:inotify\): 32 bytes of events were not read`},
	{"owned-by-other", `descriptor 3 \(/dev/zero\): it sends signals to others`},
	{"dnotify", `descriptor 3 \(/\): .*F_NOTIFY`},
	{"hugetlb-shared", `/anon_hugepage.*: shared huge pages`},
	{"nameless", `descriptor 5 \(pipe:.*its path leads nowhere`},
	{"hugetlb-file", `descriptor 3 \(/memfd:huge.*: shared huge pages, and files of hugetlbfs`},
	{"message-queue", `descriptor 3 \(/subject-.*: message queues are not preserved`},
	{"secret", `mapping .*secretmem.*: secret memory .*descriptor 3 .*: secret memory`},
	{"two", `(?s)socket.*socket.*userfaultfd|userfaultfd.*socket.*socket`},
}

// What an image cannot hold is refused, all of it in one message and by name,
// by a dry run as by a checkpoint; there is no image then, and the process
// runs on unharmed.
func TestRefusals(t *testing.T) {
	for _, r := range refusals {
		t.Run(r.scene, func(t *testing.T) {
			t.Parallel()
			s := start(t, r.scene)
			before := lookAt(t, s.pid)
			dry := s.refused(true)
			real := s.refused(false)
			if dry.Error() != real.Error() {
				t.Errorf("a dry run says %q, a checkpoint %q", dry, real)
			}
			if !regexp.MustCompile(r.names).MatchString(real.Error()) {
				t.Errorf("refused with %q, which does not match %q", real, r.names)
			}
			compareLooks(t, before, lookAt(t, s.pid), nil)
			s.release()
			s.well()
		})
	}
}

// refused tries a checkpoint that has to be refused.
func (s *subject) refused(dry bool) *lazyrestore.RefusedError {
	s.t.Helper()
	dir := filepath.Join(s.dir, "refused")
	_, err := lazyrestore.Checkpoint(s.t.Context(), s.pid, lazyrestore.CheckpointOptions{Dir: dir, DryRun: dry})
	var refused *lazyrestore.RefusedError
	if !errors.As(err, &refused) {
		s.t.Fatalf("checkpoint (dry run: %v): %v, want a refusal", dry, err)
	}
	for _, r := range refused.Reasons {
		if r.What == "" || r.Why == "" {
			s.t.Errorf("a reason without words: %+v", r)
		}
	}
	noImage(s.t, s.dir, "refused")
	return refused
}

// noImage fails the test if there is an image, or part of one.
func noImage(t testing.TB, dir, name string) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(dir, "*"+name+"*"))
	if err != nil {
		t.Fatal(err)
	}
	hidden, _ := filepath.Glob(filepath.Join(dir, ".*"+name+"*"))
	if left = append(left, hidden...); len(left) > 0 {
		t.Errorf("%v is left of it", left)
	}
}

// A process that is to end while it holds a robust mutex in a file is refused, which the kernel
// would change for that; one that runs on is not, nor one that holds none any more.
func TestRefusesHeldMutex(t *testing.T) {
	t.Parallel()
	s := start(t, "held-mutex")
	if err := s.refused(false); !contains(err.Error(), "/mutex: a thread holds a robust mutex in it") {
		t.Errorf("refused with %q, want it to name the file", err)
	}
	s.checkpoint(lazyrestore.CheckpointOptions{LeaveRunning: true})
	s.release()
	s.ready(2)
	s.cycle(plainest, filling)
	s.release()
	s.well()
}

// A priority-inheriting mutex in a mapped file is held when the process comes back, and who waits for it gets it: threads that stand
// still wait no more in the kernel, which would hand it on when the process ends.
func TestAwaitedMutex(t *testing.T) {
	t.Parallel()
	s := start(t, "awaited-mutex")
	s.cycle(plainest, filling)
	s.release()
	s.well()
}

// A pipe to the outside is refused beyond the standard streams.
func TestRefusesOutsidePipe(t *testing.T) {
	t.Parallel()
	ours, theirs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	defer theirs.Close()
	s := launch(t, startWith{scene: "outside-pipe", files: []*os.File{theirs}})
	s.ready(1)
	if err := s.refused(false); !contains(err.Error(), "descriptor 3 (pipe:") {
		t.Error(err)
	}
	s.release()
	s.well()
}

// A program whose executable was removed or replaced is refused.
func TestRefusesDeletedExecutable(t *testing.T) {
	for name, spoil := range map[string]func(exe string) error{
		"removed": os.Remove,
		"replaced": func(exe string) error {
			if err := os.WriteFile(exe+".new", []byte("#!/bin/sh\n"), 0o755); err != nil {
				return err
			}
			return os.Rename(exe+".new", exe)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			needAll(t)
			exe := filepath.Join(t.TempDir(), "program")
			// cp, for a file that this process has open for writing may be so in a
			// child too, and cannot be executed then
			if err := exec.Command("cp", must(subjectProgram())(t), exe).Run(); err != nil {
				t.Fatal(err)
			}
			s := launch(t, startWith{scene: "look", args: []string{"1"}, exe: exe})
			s.ready(1)
			if err := spoil(exe); err != nil {
				t.Fatal(err)
			}
			if err := s.refused(false); !contains(err.Error(), exe) {
				t.Error(err)
			}
			s.release()
			s.well()
		})
	}
}

// Processes that nobody can checkpoint.
func TestNoSuchTarget(t *testing.T) {
	needAll(t)
	zombie := exec.Command("/bin/true")
	if err := zombie.Start(); err != nil {
		t.Fatal(err)
	}
	defer zombie.Wait()
	if !ended(t, zombie.Process.Pid, patience) {
		t.Fatal("/bin/true does not end")
	}
	gone := exec.Command("/bin/true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	for _, target := range []struct {
		name    string
		pid     int
		refused bool
		says    string
	}{
		{"zombie", zombie.Process.Pid, true, "zombie"},
		{"kernel thread", 2, true, "kernel"},
		{"no process", gone.Process.Pid, false, "^no such process$"},
		{"pid 0", 0, false, ""},
		{"pid -1", -1, false, ""},
		{"itself", os.Getpid(), true, "itself"},
	} {
		t.Run(target.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "image")
			_, err := lazyrestore.Checkpoint(t.Context(), target.pid, lazyrestore.CheckpointOptions{Dir: dir})
			var refused *lazyrestore.RefusedError
			if err == nil || errors.As(err, &refused) != target.refused || !regexp.MustCompile(target.says).MatchString(err.Error()) {
				t.Errorf("%v (refused: %v), want one that matches %q (refused: %v)", err, !target.refused, target.says, target.refused)
			}
			noImage(t, filepath.Dir(dir), "image")
		})
	}
}

// A process that is traced already stays with its tracer.
func TestRefusesTracedProcess(t *testing.T) {
	t.Parallel()
	s := start(t, "look", "1")
	tracer := self(t, "trace", s.pid)
	stdin := must(tracer.StdinPipe())(t)
	stdout := must(tracer.StdoutPipe())(t)
	tracer.Stderr = os.Stderr
	if err := tracer.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := stdout.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	err := s.refused(false)
	if want := "process " + strconv.Itoa(tracer.Process.Pid) + " traces"; !contains(err.Error(), want) {
		t.Errorf("%v, want it to say %q", err, want)
	}
	stdin.Close()
	if err := tracer.Wait(); err != nil {
		t.Fatal(err)
	}
	s.cycle(plainest, filling) // and now it can be
	s.release()
	s.well()
}

// A user without privileges gets a clear word, and harms nothing: neither a
// process of root nor, where it does not suffice, one of their own.
func TestUnprivilegedCheckpoint(t *testing.T) {
	nobody := &syscall.Credential{Uid: 65534, Gid: 65534}
	for name, owner := range map[string]*syscall.Credential{"of root": nil, "own": nobody} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := launch(t, startWith{scene: "look", args: []string{"1"}, cred: owner})
			s.ready(1)
			cmd := self(t, "checkpoint", checkpointRole{PID: s.pid, LeaveRunning: true, Dir: filepath.Join(s.dir, "image")})
			cmd.Path = "/proc/self/exe" // whatever the directories that lead to it allow
			cmd.Dir, cmd.SysProcAttr = "/", &syscall.SysProcAttr{Credential: nobody}
			out, err := cmd.CombinedOutput()
			if owner == nil && (err == nil || !contains(string(out), "permission")) {
				t.Errorf("%v: %q, want a word about permission", err, out)
			}
			if err != nil {
				noImage(t, s.dir, "image")
				if len(out) == 0 {
					t.Error("it failed without a word")
				}
			}
			s.release()
			s.well()
		})
	}
}

// The process id is taken: nothing happens to whoever has it.
func TestRestoreRefusesTakenPID(t *testing.T) {
	t.Parallel()
	s := start(t, "look", "1")
	s.checkpoint(lazyrestore.CheckpointOptions{LeaveRunning: true})
	err := s.tryRestore(filling)
	var refused *lazyrestore.RefusedError
	if !errors.As(err, &refused) || !contains(err.Error(), "process id "+strconv.Itoa(s.pid)) {
		t.Errorf("%v, want a refusal that names the id", err)
	}
	s.release()
	s.well()
}

// An id that a thread needs is taken by another process. Of many threads, the last
// is not made by the first.
func TestRestoreRefusesTakenThreadID(t *testing.T) {
	for _, scene := range []string{"own-things", "crowd"} {
		t.Run(scene, func(t *testing.T) {
			s := start(t, scene)
			tids := must(proc.ReadTasks(s.pid))(t)
			tid := tids[len(tids)-1]
			if tid == s.pid {
				t.Fatal("there is but one thread")
			}
			s.checkpoint(plainest)
			takeID(t, tid)
			err := s.tryRestore(filling)
			var refused *lazyrestore.RefusedError
			if !errors.As(err, &refused) || !contains(err.Error(), strconv.Itoa(tid)) {
				t.Errorf("%v, want a refusal that names the id %d", err, tid)
			}
			if err := unix.Kill(s.pid, 0); !errors.Is(err, unix.ESRCH) {
				t.Errorf("process %d after the refusal: %v, want no such process", s.pid, err)
			}
		})
	}
}

// takeID gives a process of ours a certain id until the test has ended.
func takeID(t *testing.T, id int) {
	t.Helper()
	sleep := must(os.Open("/bin/sleep"))(t)
	defer sleep.Close()
	tr := must(proc.NewTracer())(t)
	t.Cleanup(func() {
		if err := errors.Join(tr.KillAll(), tr.Close()); err != nil {
			t.Error(err)
		}
	})
	if err := tr.Start(proc.StartOptions{PID: id, Exec: int(sleep.Fd()), Args: []string{"sleep", "100"}}); err != nil {
		t.Fatal(err)
	}
}

// Files that changed between checkpoint and restore.
func TestChangedFiles(t *testing.T) {
	appendTo := func(name string) func(*subject) error {
		return func(s *subject) error {
			f, err := os.OpenFile(filepath.Join(s.dir, name), os.O_WRONLY|os.O_APPEND, 0)
			if err == nil {
				_, err = f.WriteString("more")
				f.Close()
			}
			return err
		}
	}
	rewrite := func(name string) func(*subject) error {
		return func(s *subject) error {
			f, err := os.OpenFile(filepath.Join(s.dir, name), os.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteString("other")
				f.Close()
			}
			return err
		}
	}
	regrow := func(name string) func(*subject) error {
		return func(s *subject) error {
			path := filepath.Join(s.dir, name)
			info, err := os.Stat(path)
			if err == nil {
				err = errors.Join(os.Truncate(path, 0), os.Truncate(path, info.Size()))
			}
			return err
		}
	}
	for _, c := range []struct {
		name, scene string
		change      func(s *subject) error
		refused     string // what the refusal names; empty: restored, with a warning
	}{
		{"log rewritten", "regular", rewrite("log"), ""},
		{"shared mapping written", "shared-file", rewrite("shared"), "/shared"},
		{"shared mapping shrunk and grown again", "shared-file", regrow("shared"), "/shared"},
		{"log grew", "regular", appendTo("log"), ""},
		{"log shorter", "regular", func(s *subject) error { return os.Truncate(filepath.Join(s.dir, "log"), 2) }, "/log"},
		{"log removed", "regular", func(s *subject) error { return os.Remove(filepath.Join(s.dir, "log")) }, "/log"},
		{"mapped file changed", "private-file", func(s *subject) error {
			return os.WriteFile(filepath.Join(s.dir, "private"), make([]byte, 64*4096), 0o600)
		}, "/private"},
		{"mapped file grew", "private-file", appendTo("private"), "/private"},
		{"mapped file removed", "private-file", func(s *subject) error { return os.Remove(filepath.Join(s.dir, "private")) }, "/private"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := start(t, c.scene)
			s.checkpoint(plainest)
			if err := c.change(s); err != nil {
				t.Fatal(err)
			}
			err := s.tryRestore(filling)
			if c.refused == "" {
				if err != nil || len(s.proc.Result().Warnings) == 0 {
					t.Fatalf("error %v, warnings %v, want a warning", err, s.proc.Result().Warnings)
				}
				return
			}
			var refused *lazyrestore.RefusedError
			if !errors.As(err, &refused) || !strings.Contains(err.Error(), c.refused) {
				t.Errorf("%v, want a refusal that names %s", err, c.refused)
			}
		})
	}
}

// With --changed-files=warn the program finds its files as they are.
func TestChangedFilesWarn(t *testing.T) {
	t.Parallel()
	s := start(t, "shared-file")
	s.checkpoint(plainest)
	if err := os.Chtimes(filepath.Join(s.dir, "shared"), time.Time{}, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := s.tryRestore(lazyrestore.RestoreOptions{ChangedFiles: lazyrestore.ChangedWarn}); err != nil {
		t.Fatal(err)
	}
	if warned := s.proc.Result().Warnings; len(warned) == 0 || !contains(warned[0], "/shared") {
		t.Errorf("warnings %q, want one that names the file", warned)
	}
	s.release()
	s.well()
}

// A file on a mount that is no more has a path that leads nowhere.
func TestRefusesForeignMount(t *testing.T) {
	t.Parallel()
	needAll(t)
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "file"))
	if err == nil {
		err = unix.Unmount(dir, unix.MNT_DETACH)
	}
	if err != nil {
		t.Fatal(err)
	}
	s := launch(t, startWith{scene: "outside-pipe", files: []*os.File{f}})
	f.Close()
	s.ready(1)
	if err := s.refused(false); !regexp.MustCompile(`descriptor 3 \(.*file\): its path leads`).MatchString(err.Error()) {
		t.Error(err)
	}
	s.release()
	s.well()
}

// mountOver mounts an empty file system over a directory, until the end of the test at the latest.
func mountOver(t *testing.T, dir string) (unmount func()) {
	t.Helper()
	if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	unmount = sync.OnceFunc(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(unmount)
	return unmount
}

// The working directory would be what is mounted over it.
func TestRefusesHiddenWorkingDirectory(t *testing.T) {
	t.Parallel()
	s := start(t, "look", "1")
	unmount := mountOver(t, s.dir)
	if err := s.refused(false); !contains(err.Error(), "the working directory "+s.dir+": its path leads to another file now") {
		t.Error(err)
	}
	unmount()
	s.release()
	s.well()
}

// Of two mapped files that have had one path, one is there now: here the one that was
// mapped later, at the lower address.
func TestRefusesFilesOfOnePath(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	put := func(content string) {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("below")
	s := start(t, "mapped-twice", path)
	mountOver(t, dir)
	put("above")
	s.release()
	s.ready(2)
	if err := s.refused(false); !contains(err.Error(), "the mapped file "+path+": its path leads to another file now") {
		t.Error(err)
	}
	s.release()
	s.well()
}
