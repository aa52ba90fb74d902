package lazyrestore_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore"
)

// apart is r in a pid namespace of its own.
func apart(r lazyrestore.RestoreOptions) lazyrestore.RestoreOptions {
	r.PIDNamespace = true
	return r
}

// twin brings the subject's last image to life once more, beside whatever has
// its pid. It is ended with the test.
func (s *subject) twin(r lazyrestore.RestoreOptions) *subject {
	s.t.Helper()
	twin := &subject{t: s.t, dir: s.dir, image: s.image, away: s.away}
	if err := twin.tryRestore(apart(r)); err != nil {
		s.t.Fatalf("restore in a pid namespace: %v", err)
	}
	s.t.Cleanup(twin.end)
	twin.pid = twin.proc.PID()
	return twin
}

// pidNamespace is what tells the pid namespace of a process from others. It is
// held until the test ends: a later one would be given the number of one that is gone.
func pidNamespace(t testing.TB, pid int) string {
	t.Helper()
	path := "/proc/" + strconv.Itoa(pid) + "/ns/pid"
	held := must(os.Open(path))(t)
	t.Cleanup(func() { held.Close() })
	return must(os.Readlink(path))(t)
}

// membersOf are the processes of a pid namespace.
func membersOf(t testing.TB, namespace string) (pids []string) {
	t.Helper()
	for _, link := range must(filepath.Glob("/proc/[0-9]*/ns/pid"))(t) {
		if to, err := os.Readlink(link); err == nil && to == namespace {
			pids = append(pids, strings.Split(link, "/")[2])
		}
	}
	return pids
}

// living leaves out processes that have ended and only wait for a parent to
// notice: they have no memory any more.
func living(pids []string) []string {
	return slices.DeleteFunc(pids, func(pid string) bool {
		statm, err := os.ReadFile("/proc/" + pid + "/statm")
		return err != nil || strings.HasPrefix(string(statm), "0 ")
	})
}

// initsHere are the first processes of pid namespaces whose parent is a process.
func initsHere(t testing.TB, parent int) (pids []string) {
	t.Helper()
	line := regexp.MustCompile(fmt.Sprintf(`^\d+ \(.*\) \S %d `, parent))
	for _, path := range must(filepath.Glob("/proc/[0-9]*/stat"))(t) {
		pid := strings.Split(path, "/")[2]
		stat, err := os.ReadFile(path)
		if err != nil || !line.Match(stat) {
			continue
		}
		if status, err := os.ReadFile("/proc/" + pid + "/status"); err == nil && contains(string(status), "\nNSpid:\t"+pid+"\t1\n") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Scenes whose state is about ids: of threads, of who sent a signal, of who
// gets one, of who holds a lock; or that make processes.
var idScenes = []survival{
	{scene: "own-things"},
	{scene: "sleepers"},
	{scene: "timed-sleepers", args: []string{"nanosleep"}},
	{scene: "robust-mutexes"},
	{scene: "crowd"},
	{scene: "scheduling"},
	{scene: "pending"},
	{scene: "many-pending"},
	{scene: "posix-timers"},
	{scene: "timers"},
	{scene: "owners"},
	{scene: "proc-itself"},
	{scene: "another-user"},
	{scene: "credentials"},
	{scene: "death-signal"},
	{scene: "clocks"},
	{scene: "attributes"},
	{scene: "look"},
	{scene: "forks"},
	{scene: "many"},
	{scene: "kernel-copies"},
}

// An image is restored twice beside its running original, and all three end
// well.
func TestPIDNamespaces(t *testing.T) {
	t.Parallel()
	for _, sc := range idScenes {
		t.Run(sc.scene, func(t *testing.T) {
			t.Parallel()
			s := start(t, sc.scene, sc.args...)
			s.checkpoint(lazyrestore.CheckpointOptions{LeaveRunning: true})
			var twins [2]*subject
			for i, r := range allLazy {
				twins[i] = s.twin(r)
				if inner := twins[i].proc.Result().InnerPID; inner != s.pid {
					t.Errorf("its pid inside is %d, it was %d", inner, s.pid)
				}
			}
			var namespaces [2]string
			for i, twin := range twins {
				namespaces[i] = pidNamespace(t, twin.pid)
				if members := membersOf(t, namespaces[i]); len(members) != 2 {
					t.Errorf("its namespace has processes %v: it is not alone with its init", members)
				}
			}
			s.release()
			for i, twin := range twins {
				namespace := namespaces[i]
				twin.well()
				if left := membersOf(t, namespace); len(left) > 0 {
					t.Errorf("left in its namespace: %v", left)
				}
			}
			s.well()
		})
	}
}

// Many restores of one image may be made at once.
func TestPIDNamespacesAtOnce(t *testing.T) {
	t.Parallel()
	s := start(t, "look", "8")
	s.checkpoint(plainest)
	s.release()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			p, err := lazyrestore.Restore(t.Context(), s.image, apart(filling))
			if err != nil {
				t.Error(err)
				return
			}
			if status, err := p.Wait(); err != nil || status.ExitStatus() != 0 {
				t.Errorf("status %v: %v", status, err)
			}
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got := s.output(); strings.Count(got, "done\n") != 8 || contains(got, "lost") {
		t.Error(got)
	}
}

// What the process has started ends with it.
func TestPIDNamespaceEndsWithItsProcess(t *testing.T) {
	for _, r := range allLazy {
		t.Run(backgroundName(r), func(t *testing.T) {
			t.Parallel()
			s := start(t, "orphan")
			s.checkpoint(plainest)
			twin := s.twin(r)
			namespace := pidNamespace(t, twin.pid)
			s.release()
			twin.status()
			if left := membersOf(t, namespace); len(left) > 0 {
				t.Errorf("left in its namespace: %v", left)
			}
			twin.close()
			if got := twin.output(); contains(got, "lost") || contains(got, "orphan well") {
				t.Error(got)
			}
		})
	}
}

// A process that is killed takes its namespace with it, also where the pager
// still has memory to bring.
func TestKillInPIDNamespace(t *testing.T) {
	t.Parallel()
	s := start(t, "look")
	s.checkpoint(plainest)
	twin := s.twin(lazily)
	namespace := pidNamespace(t, twin.pid)
	if err := twin.proc.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if status := twin.status(); status.Signal() != unix.SIGKILL {
		t.Errorf("ended with %v, want SIGKILL", status)
	}
	if left := membersOf(t, namespace); len(left) > 0 {
		t.Errorf("left in its namespace: %v", left)
	}
	twin.close()
}

// After a SIGKILL of the pager the program waits for its missing pages, in its
// namespace as elsewhere; and it and its namespace end when it is told to.
func TestKilledPagerInPIDNamespace(t *testing.T) {
	t.Parallel()
	s := start(t, "forever", "96")
	s.checkpoint(plainest)
	said := int64(len(s.output()))
	for try := 1; !s.waitsWithoutPager(); try++ {
		if try == 10 { // a busy machine may come to the kill when all is there
			t.Fatal("it had all its memory already")
		}
		s.again(said)
	}
}

// waitsWithoutPager kills the pager of a subject that reads its memory in a namespace, and then the subject. It
// reports whether that waited meanwhile: else it had come to its end.
func (s *subject) waitsWithoutPager() bool {
	t := s.t
	restorer := s.restoreElsewhere(apart(lazily))
	defer restorer.kill()
	if !<-restorer.runs {
		t.Fatalf("restore: %v", restorer.errs)
	}
	inits := initsHere(t, restorer.cmd.Process.Pid)
	if len(inits) != 1 {
		t.Fatalf("first processes of its namespaces: %v", inits)
	}
	namespace := pidNamespace(t, must(strconv.Atoi(inits[0]))(t))
	members := slices.DeleteFunc(membersOf(t, namespace), func(pid string) bool { return pid == inits[0] })
	if len(members) != 1 {
		t.Fatalf("processes in its namespace: %v", members)
	}
	s.pid = must(strconv.Atoi(members[0]))(t)
	kill := killByFD(t, s.pid)
	s.release()
	s.says(`(?m)^at \d+$`) // in the middle of its own reading
	restorer.kill()
	s.settled()
	got := s.output()
	if contains(got, "lost") {
		t.Error(got)
	}
	kill()
	s.await("leave nothing of its namespace", func() bool { return len(living(membersOf(t, namespace))) == 0 })
	return !contains(got, "ready 2")
}

// A restore that fails, early or late, leaves no process.
func TestFailedPIDNamespaceLeavesNothing(t *testing.T) {
	s := start(t, "private-file") // which has files that may be changed
	s.checkpoint(plainest)
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T)
	}{
		{"damaged eager pages", func(t *testing.T) { flipByte(t, filepath.Join(s.image, "eager.raw"), 5000) }},
		{"damaged manifest", func(t *testing.T) { flipByte(t, filepath.Join(s.image, "manifest.json"), 100) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.spoil(t)
			if err := s.tryRestore(apart(filling)); err == nil {
				t.Fatal("it was restored")
			}
			if left := initsHere(t, os.Getpid()); len(left) > 0 {
				t.Errorf("first processes of namespaces are left: %v", left)
			}
		})
	}
}

func flipByte(t *testing.T, path string, at int) {
	t.Helper()
	b := must(os.ReadFile(path))(t)
	b[at%len(b)] ^= 0x20
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A restore that is killed at any moment leaves a process that is whole or
// waits, or none, and no namespace without a process.
func TestKilledRestoreInPIDNamespace(t *testing.T) {
	t.Parallel()
	s := start(t, "look", "8")
	s.checkpoint(plainest)
	s.release()
	whole := restoreTime(t, s)
	for n := range 25 {
		restorer := s.restoreElsewhere(apart(allLazy[n%2]))
		pause(rand.N(whole + whole/4))
		inits := restorer.stop(s)
		restorer.kill()
		<-restorer.runs
		for _, first := range inits {
			s.endNamespace(first)
		}
		if got := s.output(); contains(got, "lost") {
			t.Fatalf("run %d: %s", n, got)
		}
	}
}

// stop stops a restorer, unless it has ended, and gives the first processes of
// the namespaces that it has made by then.
func (r *restorer) stop(s *subject) (inits []string) {
	s.t.Helper()
	pid := r.cmd.Process.Pid
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		s.t.Fatal(err)
	}
	s.await("see its restore stopped", func() bool { return strings.ContainsAny(stateOf(pid), "TZ") })
	return initsHere(s.t, pid)
}

// endNamespace waits until a namespace, of which the first process is given, is
// gone, or holds a process that waits for its pages, which is ended then.
func (s *subject) endNamespace(first string) {
	s.t.Helper()
	path := "/proc/" + first + "/ns/pid"
	held, err := os.Open(path) // or else another might get its number meanwhile, and be ended
	if err != nil {
		return // it is gone
	}
	defer held.Close()
	namespace, err := os.Readlink(path)
	if err != nil {
		return
	}
	s.await("end or wait in its namespace", func() bool {
		alive := living(membersOf(s.t, namespace))
		for _, pid := range slices.DeleteFunc(slices.Clone(alive), func(pid string) bool { return pid == first }) {
			n := must(strconv.Atoi(pid))(s.t)
			if state := stateOf(n); state == "t" || state == "T" {
				s.t.Errorf("the half-built process is still there, state %s", state)
			}
			if to, err := os.Readlink("/proc/" + pid + "/ns/pid"); err == nil && to == namespace {
				killByFD(s.t, n)()
			}
		}
		return len(alive) == 0
	})
}

// A process in a pid namespace of its own is saved again from outside, also
// while its memory is missing, and restored in another, or in none.
func TestCheckpointInPIDNamespace(t *testing.T) {
	t.Parallel()
	needAll(t)
	mountAndUnmount(t)
	for _, sc := range idScenes {
		t.Run(sc.scene, func(t *testing.T) {
			t.Parallel()
			s := start(t, sc.scene, sc.args...)
			inner := s.pid
			s.checkpoint(plainest)
			for _, r := range allLazy {
				s.inPIDNamespace(r)
				namespace := pidNamespace(t, s.pid)
				s.checkpoint(plainest)
				s.await("leave nothing of its namespace", func() bool { return len(living(membersOf(t, namespace))) == 0 })
			}
			s.pid = inner
			s.restore(filling)
			s.release()
			s.well()
		})
	}
}

// mountAndUnmount has a mount come and go, for all, until the test ends: between
// two looks at what is mounted there may be one.
func mountAndUnmount(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for tick := time.Tick(500 * time.Microsecond); ; {
			select {
			case <-end:
				return
			case <-tick:
			}
			if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
				t.Errorf("mount: %v", err)
				return
			}
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Errorf("unmount: %v", err)
				return
			}
		}
	}()
	t.Cleanup(func() {
		close(end)
		<-ended
	})
}

// inPIDNamespace brings the subject back in a pid namespace of its own.
func (s *subject) inPIDNamespace(r lazyrestore.RestoreOptions) {
	s.t.Helper()
	if err := s.tryRestore(apart(r)); err != nil {
		s.t.Fatalf("restore in a pid namespace: %v", err)
	}
	s.pid = s.proc.PID()
}

// What would end with its namespace, or be elsewhere after a restore, is
// refused; the process runs on.
func TestRefusesInPIDNamespace(t *testing.T) {
	t.Run("another process", func(t *testing.T) {
		t.Parallel()
		s := start(t, "look")
		s.checkpoint(plainest)
		s.inPIDNamespace(filling)
		cmd := exec.Command("nsenter", "--pid", "--mount", "--target", strconv.Itoa(s.pid), "sleep", "100")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = cmd.Wait() }()
		namespace := pidNamespace(t, s.pid)
		s.await("have company", func() bool { return len(membersOf(t, namespace)) == 3 })
		if err := s.refused(true); !contains(err.Error(), "of its pid namespace: an image holds one process") {
			t.Error(err)
		}
		s.release()
		s.well()
	})
	t.Run("mount", func(t *testing.T) {
		t.Parallel()
		s := start(t, "look")
		s.checkpoint(plainest)
		s.inPIDNamespace(filling)
		place := t.TempDir()
		out, err := exec.Command("nsenter", "--mount", "--target", strconv.Itoa(s.pid), "mount", "-t", "tmpfs", "none", place).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if err := s.refused(true); !contains(err.Error(), "mount "+place+" (tmpfs): it is there only for the process") {
			t.Error(err)
		}
		s.release()
		s.well()
	})
}
