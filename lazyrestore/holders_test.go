package lazyrestore_test

import (
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// What another process has too would be two things after a restore: it is
// refused, and the other process is named.
func TestRefusesWhatOthersHold(t *testing.T) {
	for _, h := range []struct{ scene, names string }{
		{"held-pipe", `descriptor 3 \(pipe:\[\d+\]\): process ORPHAN \(subject\) has it open too.*descriptor 4`},
		{"held-eventfds", `descriptor 3 \(anon_inode:\[eventfd\]\): process ORPHAN .*descriptor 22 `},
		{"held-epoll", `descriptor 3 \(anon_inode:\[eventpoll\]\): process ORPHAN `},
		{"held-file", `descriptor 3 \(.*/held\): process ORPHAN `},
		{"held-memory", `shared memory zero: process ORPHAN .* has it mapped or open too`},
		{"held-memory-file", `shared memory held: process ORPHAN `},
	} {
		t.Run(h.scene, func(t *testing.T) {
			t.Parallel()
			s := start(t, h.scene)
			orphan := s.says(`orphan (\d+)`)[1]
			names := regexp.MustCompile(`ORPHAN`).ReplaceAllString(h.names, orphan)
			if err := s.refused(false); !regexp.MustCompile(names).MatchString(err.Error()) {
				t.Errorf("refused with %q, which does not match %q", err, names)
			} else if regexp.MustCompile(`descriptor (2[3-9]|[3-9]\d) `).MatchString(err.Error()) {
				t.Errorf("refused with %q: some of it is not shared", err)
			}
			s.release()
			s.well()
			gone(t, orphan)
			s = start(t, h.scene) // alone it can be saved
			endOrphan(t, s)
			s.cycle(plainest, filling)
			s.release()
			s.well()
		})
	}
}

// gone waits for the end of a process that is no child of ours.
func gone(t *testing.T, pid string) {
	t.Helper()
	if fd, err := unix.PidfdOpen(must(strconv.Atoi(pid))(t), 0); err == nil {
		defer unix.Close(fd)
		if !uffdtest.Readable(fd, patience) {
			t.Fatalf("process %s does not end", pid)
		}
	}
}

func endOrphan(t *testing.T, s *subject) {
	t.Helper()
	orphan := s.says(`orphan (\d+)`)[1]
	if err := unix.Kill(must(strconv.Atoi(orphan))(t), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	gone(t, orphan)
}

// Not all that two processes have is shared.
func TestSharesWhatIsHarmless(t *testing.T) {
	t.Parallel()
	s := start(t, "held-harmless")
	s.cycle(plainest, filling)
	s.release()
	s.well()
}

// Standard streams may be shared, as those of a script's programs are: the
// offset is one no longer after a restore, which is said.
func TestSharedStandardStreams(t *testing.T) {
	t.Parallel()
	needAll(t)
	input := must(os.CreateTemp(t.TempDir(), "input"))(t)
	defer input.Close()
	s := launch(t, startWith{scene: "look", args: []string{"1"}, stdin: input})
	s.ready(1)
	s.checkpoint(plainest)
	want := `descriptor 0 \(` + regexp.QuoteMeta(input.Name()) + `\): process(?:es)? ` + strconv.Itoa(os.Getpid()) + ` .* the same open file`
	if warned := s.last.Warnings; len(warned) != 1 || !regexp.MustCompile(want).MatchString(warned[0]) {
		t.Errorf("warnings %q, want one that matches %q", warned, want)
	}
	s.restore(filling)
	s.release()
	s.well()
}

func TestRefusesThreadApart(t *testing.T) {
	t.Parallel()
	s := launch(t, startWith{scene: "thread-apart"})
	s.says("apart")
	s.ready(1)
	if err := s.refused(false); !regexp.MustCompile(`thread \d+: it has descriptors of its own`).MatchString(err.Error()) {
		t.Error(err)
	}
	s.release()
	s.well()
}

// What a process traces is no child of its, and may be killed with it.
func TestRefusesTracer(t *testing.T) {
	t.Parallel()
	s := launch(t, startWith{scene: "tracer"})
	orphan := s.says(`orphan (\d+)`)[1]
	s.says("traces")
	s.ready(1)
	for _, dry := range []bool{true, false} {
		if err := s.refused(dry); !contains(err.Error(), "process "+orphan+" (subject), which it traces: ") {
			t.Error(err)
		}
	}
	s.release()
	s.well()
	gone(t, orphan)
}

// A process that is about to execute another program has all of its parent's
// for a moment: that is no reason to refuse.
func TestHoldersOfAMoment(t *testing.T) {
	t.Parallel()
	s := start(t, "eventfds")
	stop := make(chan struct{})
	busy := make(chan struct{})
	go func() {
		defer close(busy)
		for {
			select {
			case <-stop:
				return
			default:
				_ = exec.Command("/bin/true").Run()
			}
		}
	}()
	for range 20 {
		if _, err := lazyrestore.Checkpoint(t.Context(), s.pid, lazyrestore.CheckpointOptions{Dir: s.dir + "/none", DryRun: true}); err != nil {
			t.Error(err)
			break
		}
	}
	close(stop)
	<-busy
	s.release()
	s.well()
}
