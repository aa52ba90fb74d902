package lazyrestore_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
	"github.com/lazyrestore/lazyrestore/lazyrestore/store"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// A restorer is a restore in a process of its own.
type restorer struct {
	cmd  *exec.Cmd
	runs chan bool // whether it said so, once
	errs *bytes.Buffer
}

// restoreElsewhere starts a restore of the subject's last image in another
// process.
func (s *subject) restoreElsewhere(opts lazyrestore.RestoreOptions) *restorer {
	s.t.Helper()
	r := &restorer{cmd: self(s.t, "restore", restoreRole{Image: s.image, Background: opts.Background, Eager: opts.Eager, Apart: opts.PIDNamespace}), runs: make(chan bool, 1), errs: new(bytes.Buffer)}
	out := must(r.cmd.StdoutPipe())(s.t)
	r.cmd.Stderr = r.errs
	if err := r.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func() {
		line, _ := bufio.NewReader(out).ReadString('\n')
		r.runs <- line == "runs\n"
	}()
	return r
}

// kill ends the restorer.
func (r *restorer) kill() {
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait()
}

// word is the number that fill writes in the place with an index.
func word(seed, i uint64) uint64 { return (seed + i + 1) * 0x9e3779b97f4a7c15 }

// wrongPages reads the pages of a process that are present, without a fault,
// and counts them and those that do not hold what fill has written there.
func wrongPages(t testing.TB, pid int, start, size uint64) (present, wrong int) {
	t.Helper()
	dir := "/proc/" + strconv.Itoa(pid)
	pagemap := must(os.Open(dir + "/pagemap"))(t)
	defer pagemap.Close()
	mem := must(os.Open(dir + "/mem"))(t)
	defer mem.Close()
	entries := make([]byte, size/4096*8)
	if _, err := pagemap.ReadAt(entries, int64(start/4096*8)); err != nil {
		t.Fatal(err)
	}
	page := make([]byte, 4096)
	for n := range size / 4096 {
		const there = 1 << 63
		if binary.NativeEndian.Uint64(entries[8*n:])&there == 0 {
			continue
		}
		present++
		if _, err := mem.ReadAt(page, int64(start+n*4096)); err != nil {
			t.Fatalf("read page %d: %v", n, err)
		}
		for i := uint64(0); i < 512; i++ {
			if binary.NativeEndian.Uint64(page[8*i:]) != word(1, n*512+i) {
				wrong++
				break
			}
		}
	}
	return present, wrong
}

// After a SIGKILL of the pager, at any moment, the program waits: what it has
// is right, and what it has not is missing, not zero.
func TestKilledPagerLeavesNoWrongByte(t *testing.T) {
	for n, r := range []lazyrestore.RestoreOptions{lazily, filling, lazily, filling} {
		t.Run(fmt.Sprintf("%s-%d", backgroundName(r), n), func(t *testing.T) {
			t.Parallel()
			mib := "96"
			if n == 1 {
				mib = "320" // or it may all be there before the kill
			}
			s := launch(t, startWith{scene: "forever", args: []string{mib}})
			at := s.says(`(?m)^memory (0x[0-9a-f]+) (\d+)$`)
			s.ready(1)
			start := must(strconv.ParseUint(at[1], 0, 64))(t)
			size := must(strconv.ParseUint(at[2], 10, 64))(t)
			s.checkpoint(plainest)
			once := func() (present uint64) {
				restorer := s.restoreElsewhere(r)
				defer restorer.kill()
				if !<-restorer.runs {
					t.Fatalf("restore: %v", restorer.errs)
				}
				defer s.leavesID()
				defer killByFD(t, s.pid)()
				s.release()
				if n < 2 {
					s.says(`(?m)^at \d+$`) // in the middle of its own reading
				}
				restorer.kill()
				s.settled()
				p, wrong := wrongPages(t, s.pid, start, size)
				if wrong > 0 {
					t.Errorf("%d of %d pages are wrong", wrong, p)
				}
				return uint64(p)
			}
			said := int64(len(s.output()))
			for try := 1; once() == size/4096 && n < 2; try++ {
				if try == 10 { // a busy machine may come to the kill when all is there
					t.Fatal("all was there already: the test saw nothing")
				}
				s.again(said)
			}
			if got := s.output(); contains(got, "lost") {
				t.Error(got)
			}
		})
	}
}

// A checkpoint of a process whose pager was killed says so at once, and all
// that stands against it beside.
func TestCheckpointWithoutItsPager(t *testing.T) {
	t.Parallel()
	file := must(os.CreateTemp(t.TempDir(), "file"))(t)
	s := launch(t, startWith{scene: "forever", args: []string{"96"}, files: []*os.File{file}})
	s.ready(1)
	file.Close()
	s.checkpoint(plainest)
	restorer := s.restoreElsewhere(lazily)
	defer restorer.kill()
	if !<-restorer.runs {
		t.Fatalf("restore: %v", restorer.errs)
	}
	defer killByFD(t, s.pid)()
	pidfd := must(unix.PidfdOpen(s.pid, 0))(t)
	defer unix.Close(pidfd)
	held := must(unix.PidfdGetfd(pidfd, 3, 0))(t)
	defer unix.Close(held)
	restorer.kill()
	for range 10 { // nobody takes what is asked
		_ = s.refused(true)
	}
	err := s.refusedSoon(false)
	if want := "descriptor 3 (" + file.Name() + "): process"; !contains(err.Error(), want) {
		t.Errorf("refused with %q, want it to say %q", err, want)
	}
}

// A checkpoint says no less soon where threads wait for missing memory in the
// kernel, and cannot be stopped; and does not have one wait without sleep from then on.
func TestCheckpointOfOneThatCannotStop(t *testing.T) {
	for _, call := range []string{"process_vm_readv", "write"} {
		t.Run(call, func(t *testing.T) {
			t.Parallel()
			s := launch(t, startWith{scene: "kernel-waits", args: []string{"1", call}})
			s.ready(1)
			s.checkpoint(plainest)
			restorer := s.restoreElsewhere(lazily)
			defer restorer.kill()
			if !<-restorer.runs {
				t.Fatalf("restore: %v", restorer.errs)
			}
			defer killByFD(t, s.pid)()
			s.release()
			s.ready(2)
			restorer.kill()
			s.release()
			s.await("wait for pages", func() bool { return waiting(s.pid) == 2 })
			s.refusedSoon(true)
			s.refusedSoon(false)
			asleep := 0 // looks in turn: who does not sleep runs for long, and who was disturbed for a moment
			s.await("sleep again", func() bool {
				asleep++
				if waiting(s.pid) != 2 {
					asleep = 0
				}
				return asleep > 20
			})
			s.interrupt()
			s.refusedSoon(true)
		})
	}
}

// waiting is how many threads of a process wait in the kernel for missing memory.
func waiting(pid int) (n int) {
	tids, _ := proc.ReadTasks(pid)
	for _, tid := range tids {
		if proc.WaitsForPage(tid) {
			n++
		}
	}
	return n
}

// refusedSoon tries a checkpoint that has to be refused soon, for the pager was killed:
// sooner than it would wait for the pager's answer, or for a thread to stop.
func (s *subject) refusedSoon(dry bool) *lazyrestore.RefusedError {
	s.t.Helper()
	begin := time.Now()
	err := s.refused(dry)
	if took := time.Since(begin); took > 8*time.Second {
		s.t.Errorf("it took %v to say %v", took, err)
	}
	if want := "the pager of the process was killed"; !contains(err.Error(), want) {
		s.t.Errorf("refused with %q, want it to say %q", err, want)
	}
	return err
}

// interrupt stops the process, which does not stop, as another tool would.
func (s *subject) interrupt() {
	s.t.Helper()
	tracer := must(proc.NewTracer())(s.t)
	tracer.Patience = 10 * time.Millisecond
	var stuck *proc.StuckError
	if _, err := tracer.SeizeAll(s.t.Context(), s.pid); !errors.As(err, &stuck) {
		s.t.Fatalf("seize: %v", err)
	}
	if err := tracer.Close(); !errors.As(err, &stuck) {
		s.t.Fatalf("close: %v", err)
	}
	s.await("be let go", func() bool { return must(proc.ReadStatus(s.pid))(s.t).TracerPid == 0 })
}

// settled waits until the process sleeps: it waits for a page, or is done.
func (s *subject) settled() {
	s.t.Helper()
	asleep := 0
	s.await("sleep", func() bool {
		stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(s.pid), "stat"))
		_, after, _ := strings.Cut(string(stat), ") ")
		if err == nil && (after[0] == 'S' || after[0] == 'D') {
			asleep++
		} else {
			asleep = 0
		}
		return asleep > 20
	})
}

// killByFD gives what ends a process that is nobody's child here, by a
// reference that cannot come to mean another process.
func killByFD(t testing.TB, pid int) func() {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		_ = uffdtest.Readable(fd, patience)
		unix.Close(fd)
	}
}

// A restore that is killed at any moment leaves nothing that runs with wrong
// bytes: no process, or one that is whole or waits.
func TestKilledRestoreLeavesNothingHalf(t *testing.T) {
	t.Parallel()
	s := start(t, "look", "8")
	s.checkpoint(plainest)
	s.release()
	said := int64(len(s.output()))
	whole := restoreTime(t, s)
	for n := range 25 {
		if err := os.Truncate(filepath.Join(s.dir, "out"), said); err != nil {
			t.Fatal(err)
		}
		restorer := s.restoreElsewhere(allLazy[n%2])
		pause(rand.N(whole + whole/4))
		restorer.kill()
		select {
		case <-restorer.runs:
		case <-time.After(patience):
			t.Fatal("the killed restore's output does not end")
		}
		fd, err := unix.PidfdOpen(s.pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		// It is there: it may wait for ever, or end as it should.
		gone := uffdtest.Readable(fd, 200*time.Millisecond)
		if state := stateOf(s.pid); !gone && strings.ContainsAny(state, "tT") {
			t.Errorf("run %d: the half-built process is still there, state %s", n, state)
		}
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		unix.Close(fd)
		s.leavesID()
		if got := s.output(); contains(got, "lost") {
			t.Fatalf("run %d: %s", n, got)
		}
	}
	s.restore(filling)
	s.well()
}

// again has the subject be restored once more, before its last release and with said bytes of output.
func (s *subject) again(said int64) {
	s.t.Helper()
	err := errors.Join(os.Remove(filepath.Join(s.dir, "go"+strconv.Itoa(s.stops))), os.Truncate(filepath.Join(s.dir, "out"), said))
	if err != nil {
		s.t.Fatal(err)
	}
	s.stops--
}

// leavesID waits until the id of a process is free that has lost its parent: this
// process has it then.
func (s *subject) leavesID() {
	s.t.Helper()
	s.await("leave its id", func() bool {
		_, err := unix.Wait4(s.pid, nil, unix.WNOHANG, nil)
		return errors.Is(err, unix.ECHILD) && errors.Is(unix.Kill(s.pid, 0), unix.ESRCH)
	})
}

// stateOf is the state letter of a process, empty if it has none.
func stateOf(pid int) string {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	_, after, _ := strings.Cut(string(stat), ") ")
	if err != nil || after == "" {
		return ""
	}
	return after[:1]
}

// restoreTime is how long a restore takes in another process, from its start
// to the end of the restored process.
func restoreTime(t *testing.T, s *subject) time.Duration {
	t.Helper()
	begin := time.Now()
	restorer := s.restoreElsewhere(filling)
	if err := restorer.cmd.Wait(); err != nil {
		t.Fatalf("restore: %v: %v", err, restorer.errs)
	}
	return time.Since(begin)
}

// pause waits for a moment that is drawn by lot: there is no event to wait for.
func pause(d time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	<-ctx.Done()
}

// A checkpoint that is killed or interrupted at any moment leaves the process
// running unharmed, and under the image's name nothing or a whole image.
func TestKilledCheckpointHarmsNothing(t *testing.T) {
	t.Parallel()
	for _, sig := range []unix.Signal{unix.SIGKILL, unix.SIGTERM, unix.SIGINT} {
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			t.Parallel()
			s := start(t, "works", "32")
			arguments := checkpointRole{PID: s.pid, LeaveRunning: true, Dir: filepath.Join(s.dir, "first")}
			begin := time.Now()
			if out, err := self(t, "checkpoint", arguments).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			whole := time.Since(begin)
			for n := range 15 {
				dir := filepath.Join(s.dir, "image-"+strconv.Itoa(n))
				arguments.Dir = dir
				cmd := self(t, "checkpoint", arguments)
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				pause(rand.N(whole + whole/4))
				_ = cmd.Process.Signal(sig)
				_ = cmd.Wait()
				wholeOrNothing(t, dir)
				s.await("run on", func() bool { return !strings.ContainsAny(stateOf(s.pid), "tTZ") })
			}
			s.release()
			s.well()
		})
	}
}

// wholeOrNothing verifies the image, if there is one.
func wholeOrNothing(t *testing.T, dir string) {
	t.Helper()
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return
	}
	src, err := store.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if report, err := image.Verify(t.Context(), src, image.VerifyOptions{}); err != nil || !report.OK() {
		t.Errorf("image %s: %v, %v", dir, err, report.Problems)
	}
}
