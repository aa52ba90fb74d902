package lazyrestore_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// A survival is a scene whose state has to come back.
type survival struct {
	scene string
	args  []string
	// changed are lines of the outside look that may differ, and why is said
	// where they are listed.
	changed []string
}

// survives plays scenes through two cycles: the second finds state that a
// restore has made, not the kernel on the program's own behalf.
func survives(t *testing.T, scenes []survival) {
	t.Helper()
	for _, sc := range scenes {
		t.Run(sc.scene, func(t *testing.T) {
			t.Parallel()
			s := start(t, sc.scene, sc.args...)
			before := lookAt(t, s.pid)
			s.cycle(lazyrestore.CheckpointOptions{}, lazyrestore.RestoreOptions{Background: lazyrestore.BackgroundNone})
			compareLooks(t, before, lookAt(t, s.pid), sc.changed)
			s.cycle(lazyrestore.CheckpointOptions{}, lazyrestore.RestoreOptions{})
			// A pager that leaves joins mappings, which smaps, read meanwhile,
			// shows twice.
			if err := s.proc.WaitPager(); err != nil {
				t.Fatal(err)
			}
			compareLooks(t, before, lookAt(t, s.pid), sc.changed)
			s.release()
			s.well()
		})
	}
}

// Without a checkpoint no scene loses anything: what the other tests see lost
// is lost by a restore.
func TestScenesAlone(t *testing.T) {
	t.Parallel()
	for _, sc := range slices.Concat(threadScenes, signalScenes, processScenes, mappingScenes, descriptorScenes, objectScenes, mappedScenes, socketScenes) {
		t.Run(sc.scene, func(t *testing.T) {
			t.Parallel()
			s := start(t, sc.scene, sc.args...)
			s.release()
			s.well()
		})
	}
}

var threadScenes = []survival{
	{scene: "registers"},
	{scene: "own-things"},
	// a thread in sigwait has what it waits for unblocked meanwhile
	{scene: "sleepers", changed: []string{"SigBlk"}},
	{scene: "robust-mutexes"},
	{scene: "restartable-sequences"},
	{scene: "scheduling"},
	{scene: "crowd"},
}

func TestThreadsSurvive(t *testing.T) { survives(t, threadScenes) }

// The first thread does not wait until many others have their registers, and may
// do anything meanwhile.
func TestFirstThreadInHaste(t *testing.T) {
	for _, does := range []string{"fork", "exec", "end", "signal", "stop"} {
		for _, others := range []string{"500", "2"} { // it waits for few
			t.Run(does+" "+others, func(t *testing.T) {
				t.Parallel()
				s := launch(t, startWith{scene: "haste", args: []string{does, others}})
				s.says("set")
				s.checkpoint(lazyrestore.CheckpointOptions{})
				s.touch("go1")
				s.restore(lazyrestore.RestoreOptions{})
				s.well()
			})
		}
	}
}

var signalScenes = []survival{
	{scene: "actions"},
	{scene: "pending"},
	{scene: "pending-without-entry"},
	{scene: "many-pending"},
	// the handler of its timer may be at work
	{scene: "timers", changed: []string{"SigBlk", "Pnd"}},
	{scene: "posix-timers", changed: []string{"SigBlk", "Pnd"}},
}

func TestSignalsSurvive(t *testing.T) { survives(t, signalScenes) }

func TestSignalFromOutsideSurvives(t *testing.T) {
	t.Parallel()
	s := launch(t, startWith{scene: "pending-outside", args: []string{strconv.Itoa(os.Getpid())}})
	s.says(`pid \d+`)
	if err := s.cmd.Process.Signal(unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	s.touch("sent")
	s.ready(1)
	s.cycle(lazyrestore.CheckpointOptions{}, lazyrestore.RestoreOptions{})
	s.release()
	s.well()
}

// A thread that stands in a signal handler, on the alternate stack, goes on in
// it, and returns from it to where it was interrupted.
func TestAlternateStackSurvives(t *testing.T) {
	t.Parallel()
	s := start(t, "alternate-stack")
	s.cycle(lazyrestore.CheckpointOptions{}, lazyrestore.RestoreOptions{})
	s.release()
	s.ready(2)
	s.cycle(lazyrestore.CheckpointOptions{}, lazyrestore.RestoreOptions{})
	s.release()
	s.well()
}

var processScenes = []survival{
	{scene: "attributes"},
	{scene: "not-dumpable"},
	{scene: "another-user"},
	{scene: "secure-bits"},
	{scene: "credentials"},
	{scene: "death-signal"},
	{scene: "heap"},
	{scene: "stack"},
}

func TestProcessAttributesSurvive(t *testing.T) { survives(t, processScenes) }

// What the kernel takes for the end of a parent is the end of the thread that made the
// child. That of who calls Restore may end.
func TestDeathSignalComesWithTheProgram(t *testing.T) {
	for _, apart := range []bool{false, true} {
		t.Run(map[bool]string{false: "here", true: "apart"}[apart], func(t *testing.T) {
			runtime.LockOSThread() // with which the first life ends
			defer runtime.UnlockOSThread()
			s := launch(t, startWith{scene: "heap", attr: &syscall.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL}})
			s.ready(1)
			s.checkpoint(plainest)

			other := must(proc.NewTracer())(t) // a thread that ends with Close
			var tid int
			err := other.Do(func() error {
				tid = unix.Gettid()
				return s.tryRestore(lazyrestore.RestoreOptions{PIDNamespace: apart})
			})
			if err := errors.Join(err, other.Close()); err != nil {
				t.Fatal(err)
			}
			s.pid = s.proc.PID()
			s.await("outlive a thread", func() bool {
				return errors.Is(unix.Tgkill(os.Getpid(), tid, 0), unix.ESRCH)
			})
			if err := s.proc.WaitPager(); err != nil {
				t.Fatal(err)
			}
			s.release()
			s.well()
		})
	}
}

// A checkpoint by the program that restored stops the process under a tracer, which a wait of
// another of its threads tells of too.
func TestCheckpointLeavesThreadThatDeathSignalHangsOn(t *testing.T) {
	runtime.LockOSThread() // with which the first life ends
	defer runtime.UnlockOSThread()
	s := launch(t, startWith{scene: "heap", attr: &syscall.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL}})
	s.ready(1)
	s.checkpoint(plainest)
	if err := s.tryRestore(lazyrestore.RestoreOptions{}); err != nil {
		t.Fatal(err)
	}
	s.pid = s.proc.PID()
	if err := s.proc.WaitPager(); err != nil {
		t.Fatal(err)
	}
	s.checkpoint(lazyrestore.CheckpointOptions{LeaveRunning: true})
	for range 40 { // more threads than Go has idle ones, each of which ends
		other := must(proc.NewTracer())(t)
		time.Sleep(5 * time.Millisecond) // for threads that were just left to become idle
		if err := other.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s.release()
	s.well()
}

// A process that has all of its memory needs its image no longer, nor does a checkpoint of
// it, while the program stays that restored it.
func TestResidentProcessNeedsNoImage(t *testing.T) {
	t.Parallel()
	s := start(t, "heap")
	s.cycle(plainest, lazyrestore.RestoreOptions{})
	if err := s.proc.WaitPager(); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(lazyrestore.RunDir(), strconv.Itoa(s.pid)+".sock")
	s.await("be left by its control socket", func() bool {
		_, err := os.Lstat(socket)
		return errors.Is(err, os.ErrNotExist)
	})
	if err := os.RemoveAll(s.image); err != nil {
		t.Fatal(err)
	}
	s.cycle(plainest, lazyrestore.RestoreOptions{})
	s.release()
	s.well()
}

var mappingScenes = []survival{
	{scene: "protections"},
	{scene: "code"},
	{scene: "neighbours"},
	{scene: "advice"},
	{scene: "named"},
	{scene: "guards"},
	{scene: "private-file"},
	{scene: "shared-file"},
	{scene: "shared-anonymous"},
	{scene: "shared-part"},
	{scene: "memory-file"},
	{scene: "memory-file-mapped"},
	{scene: "sparse"},
	{scene: "huge"},
}

func TestMappingsSurvive(t *testing.T) { survives(t, mappingScenes) }

var descriptorScenes = []survival{
	{scene: "pipes"},
	{scene: "half-pipes"},
	{scene: "eventfds"},
	{scene: "epolls"},
	{scene: "regular"},
	{scene: "directory"},
	{scene: "devices"},
	{scene: "proc-itself"},
	{scene: "unlinked", args: []string{"/dev/shm"}},
}

func TestDescriptorsSurvive(t *testing.T) { survives(t, descriptorScenes) }

// The working directory is one that only its name leads to.
func TestWorkingDirectorySurvives(t *testing.T) {
	t.Parallel()
	s := start(t, "look", "1")
	before := lookAt(t, s.pid)
	s.cycle(lazyrestore.CheckpointOptions{}, lazyrestore.RestoreOptions{})
	after := lookAt(t, s.pid)
	if before["cwd"] != s.dir || after["cwd"] != s.dir {
		t.Errorf("working directory %q and %q, want %q", before["cwd"], after["cwd"], s.dir)
	}
	s.release()
	s.well()
}

// A name may end with the word that the kernel has for what was removed.
func TestNamesThatSoundRemoved(t *testing.T) {
	t.Parallel()
	needAll(t)
	const deleted = " (deleted)"
	dir := filepath.Join(t.TempDir(), "dir"+deleted)
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(dir, "program"+deleted)
	// By a process of its own: what is open for writing here a child of another test may have, too.
	if out, err := exec.Command("cp", must(subjectProgram())(t), exe).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	file := must(os.OpenFile(filepath.Join(dir, "file"+deleted), os.O_RDWR|os.O_CREATE, 0o666))(t)
	defer file.Close()
	s := launch(t, startWith{scene: "look", args: []string{"1"}, exe: exe, cwd: dir, files: []*os.File{file}})
	s.ready(1)
	file.Close() // or it would be shared
	s.cycle(lazyrestore.CheckpointOptions{}, lazyrestore.RestoreOptions{})
	for link, want := range map[string]string{"exe": exe, "cwd": dir, "fd/3": file.Name()} {
		if got := must(os.Readlink(filepath.Join("/proc", strconv.Itoa(s.pid), link)))(t); got != want {
			t.Errorf("%s is %q, want %q", link, got, want)
		}
	}
	if _, err := os.Stat(file.Name()); err != nil {
		t.Error(err)
	}
	s.release()
	s.well()
}

// A process of another user is restored as that user by root.
func TestUserSurvives(t *testing.T) {
	t.Parallel()
	s := launch(t, startWith{scene: "look", args: []string{"1"}, cred: &syscall.Credential{Uid: 65534, Gid: 65534}})
	s.ready(1)
	before := lookAt(t, s.pid)
	s.cycle(lazyrestore.CheckpointOptions{}, lazyrestore.RestoreOptions{})
	compareLooks(t, before, lookAt(t, s.pid), nil)
	s.release()
	s.well()
}
