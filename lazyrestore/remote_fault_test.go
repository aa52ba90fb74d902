package lazyrestore_test

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/pageserver/proxytest"
)

// served is a checkpointed subject of some MiB in a directory of images, which
// no server has yet.
func served(t *testing.T, mib string) (s *subject, root string) {
	t.Helper()
	s = start(t, "look", mib)
	s.checkpoint(plainest)
	return s, t.TempDir()
}

// Whatever a network does, a process that is restored over it sees the right
// bytes, or waits for them.
func TestRemoteFaultyNetwork(t *testing.T) {
	run := func(name string, between func(t *testing.T, addr string) (proxy string)) {
		for _, r := range allLazy {
			t.Run(name+"/"+backgroundName(r), func(t *testing.T) {
				t.Parallel()
				s, root := served(t, "4")
				// Servers that are lost all the time are not given up at the start.
				good := newSite(t, root)
				s.publishAt(root, "img", between(t, good.addr), good.addr)
				s.restore(r)
				s.release()
				s.well()
			})
		}
	}
	for _, fault := range proxytest.Faults {
		run(fault.Name, func(t *testing.T, addr string) string { return proxytest.Toxic(t, addr, fault.Toxic) })
	}
	run("turns bits over", func(t *testing.T, addr string) string {
		return proxytest.Corrupt(t, addr, 50_000).Addr().String()
	})
}

// A server is killed while a process misses memory, and another one has the
// image: the process goes on, and does not notice.
func TestFailOver(t *testing.T) {
	t.Parallel()
	s, root := served(t, "16")
	first, second := newSite(t, root), newSite(t, root)
	s.publish(root, "img", first, second)
	s.restore(lazily)
	first.stop()
	s.release()
	s.awaitWell()
	if st := s.proc.Stats(); st.OutageMS > 0 || st.ReceivedBytes == 0 {
		t.Errorf("OutageMS = %v, ReceivedBytes = %d", st.OutageMS, st.ReceivedBytes)
	}
	s.well()
}

// awaitWell waits for the end, and leaves the process to well.
func (s *subject) awaitWell() {
	s.t.Helper()
	if !ended(s.t, s.pid, patience) {
		s.t.Fatalf("the process does not end; it said:\n%s", s.output())
	}
}

// The image is replaced while a process misses memory of it. The server goes on
// to give the old one; started anew it has another image, and is left alone
// until it has the right one again.
func TestImageIsReplacedAmidRestore(t *testing.T) {
	replace := func(t *testing.T, root string) (old string) {
		t.Helper()
		other := start(t, "look", "8")
		other.checkpoint(plainest)
		old = filepath.Join(root, ".old")
		if err := errors.Join(os.Rename(filepath.Join(root, "img"), old), os.Rename(other.image, filepath.Join(root, "img"))); err != nil {
			t.Fatal(err)
		}
		return old
	}
	t.Run("the server has it open", func(t *testing.T) {
		t.Parallel()
		s, root := served(t, "8")
		s.publish(root, "img", newSite(t, root))
		s.restore(lazily)
		if err := os.RemoveAll(replace(t, root)); err != nil {
			t.Fatal(err)
		}
		s.release()
		s.well()
	})
	t.Run("the server starts anew", func(t *testing.T) {
		t.Parallel()
		s, root := served(t, "8")
		server := newSite(t, root)
		s.publish(root, "img", server)
		var log lockedLog
		opts := lazily
		opts.Logger = slog.New(slog.NewTextHandler(&log, nil))
		s.restore(opts)
		server.stop()
		old := replace(t, root)
		server.start()
		s.release()
		log.await(t, `another image under this name`)
		if err := errors.Join(os.RemoveAll(filepath.Join(root, "img")), os.Rename(old, filepath.Join(root, "img"))); err != nil {
			t.Fatal(err)
		}
		s.well()
	})
}

// An image that is written to while a process misses memory of it gives no
// wrong byte: the server says that it has changed, and the process waits until
// another server has it.
func TestImageIsDamagedAmidRestore(t *testing.T) {
	t.Parallel()
	s, root := served(t, "8")
	spare := t.TempDir()
	damaged, later := newSite(t, root), newSite(t, spare)
	s.publish(root, "img", damaged, later)
	var log lockedLog
	opts := lazily
	opts.Logger = slog.New(slog.NewTextHandler(&log, nil))
	s.restore(opts)
	if err := os.CopyFS(filepath.Join(spare, ".img"), os.DirFS(filepath.Join(root, "img"))); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(root, "img", "pages.lz4")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		b[i] ^= 0x55
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s.release()
	log.await(t, `has been written to`)
	if err := os.Rename(filepath.Join(spare, ".img"), filepath.Join(spare, "img")); err != nil {
		t.Fatal(err)
	}
	s.well()
}

// await waits until the log has a line that matches.
func (l *lockedLog) await(t *testing.T, pattern string) {
	t.Helper()
	re := regexp.MustCompile(pattern)
	for deadline := time.Now().Add(patience); !re.MatchString(l.String()); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the log does not say %q:\n%s", pattern, l.String())
		}
	}
}
