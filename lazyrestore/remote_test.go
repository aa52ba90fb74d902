package lazyrestore_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// publish has the subject's image served under a name, and restored from there.
func (s *subject) publish(root, name string, sites ...*site) {
	s.t.Helper()
	var addrs []string
	for _, site := range sites {
		addrs = append(addrs, site.addr)
	}
	s.publishAt(root, name, addrs...)
}

// publishAt is publish for servers, or proxies, by their addresses.
func (s *subject) publishAt(root, name string, addrs ...string) {
	s.t.Helper()
	if err := os.Rename(s.image, filepath.Join(root, name)); err != nil {
		s.t.Fatal(err)
	}
	s.image = "tcp://" + strings.Join(addrs, ",") + "/" + name
}

// Whatever a process does while its memory is still on a server, every byte is
// right.
func TestRemote(t *testing.T) {
	for _, scene := range []string{"look", "changes", "forks", "many", "kernel-copies"} {
		for _, r := range allLazy {
			t.Run(scene+"/"+backgroundName(r), func(t *testing.T) {
				t.Parallel()
				s := start(t, scene)
				s.checkpoint(plainest)
				root := t.TempDir()
				s.publish(root, "img", newSite(t, root))
				s.release()
				s.restore(r)
				s.well()
			})
		}
	}
}

// A second restore on a machine hardly touches the network, and one whose cache
// is damaged gets the right bytes all the same.
func TestRemoteCache(t *testing.T) {
	t.Parallel()
	s := start(t, "look", "32")
	s.checkpoint(plainest)
	root, cache := t.TempDir(), filepath.Join(t.TempDir(), "cache")
	s.publish(root, "img", newSite(t, root))
	opts := filling
	opts.Source.Cache = cache
	var received []uint64
	for range 3 {
		s.restore(opts)
		if err := s.proc.WaitPager(); err != nil {
			t.Fatal(err)
		}
		received = append(received, s.proc.Stats().ReceivedBytes)
		s.endRestored()
		files, err := filepath.Glob(filepath.Join(cache, "*", "pages.lz4"))
		if err != nil || len(files) != 1 {
			t.Fatalf("files of the cache: %q, %v", files, err)
		}
		if len(received) < 2 {
			continue
		}
		b, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		for i := 1000; i < len(b); i += len(b) / 7 {
			b[i] ^= 0x40
		}
		if err := os.WriteFile(files[0], b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("received %d bytes", received)
	if received[0] < 1<<20 || received[1] > received[0]/4 {
		t.Errorf("the second restore received %d bytes, the first %d", received[1], received[0])
	}
	s.restore(opts)
	s.release()
	s.well()
	if s.proc != nil && s.proc.Stats().CachedBytes < 1<<20 {
		t.Errorf("only %d bytes came out of the cache", s.proc.Stats().CachedBytes)
	}
}

// The server is killed and started anew in the middle of many restores: the
// processes wait, and every byte is right.
func TestServerDiesAmidRestores(t *testing.T) {
	t.Parallel()
	many := 100
	if raceEnabled {
		many = 30
	}
	root := t.TempDir()
	var subjects []*subject
	for i := range many {
		s := start(t, "look", "1")
		s.checkpoint(plainest)
		subjects = append(subjects, s)
		if err := os.Rename(s.image, filepath.Join(root, strconv.Itoa(i))); err != nil {
			t.Fatal(err)
		}
	}
	server := newSite(t, root)
	for i, s := range subjects {
		s.image = "tcp://" + server.addr + "/" + strconv.Itoa(i)
		s.restore(lazily)
	}
	for range 4 {
		server.stop()
		for _, s := range subjects[:many/2] {
			s.release() // the file that it waits for; it touches all its memory then
		}
		server.start()
		time.Sleep(20 * time.Millisecond) // some get on with it
	}
	for _, s := range subjects[many/2:] {
		s.release()
	}
	for _, s := range subjects {
		s.well()
	}
}

// With no server left the process waits, and the log names the server and says
// for how long; with kill it is killed.
func TestNoServerLeft(t *testing.T) {
	t.Parallel()
	t.Run("wait", func(t *testing.T) {
		t.Parallel()
		s := start(t, "look")
		s.checkpoint(plainest)
		root := t.TempDir()
		server := newSite(t, root)
		s.publish(root, "img", server)
		var log lockedLog
		opts := lazily
		opts.Logger = slog.New(slog.NewTextHandler(&log, nil))
		s.restore(opts)
		server.stop()
		s.release()
		deadline := time.Now().Add(patience)
		for !strings.Contains(log.String(), "pages cannot be had") {
			if time.Now().After(deadline) {
				t.Fatalf("the log does not say that nothing comes:\n%s", log.String())
			}
			time.Sleep(10 * time.Millisecond)
		}
		if text := log.String(); !strings.Contains(text, server.addr) || !regexp.MustCompile(`for=[1-9][0-9]*s`).MatchString(text) {
			t.Errorf("the log does not name the server, or not how long:\n%s", text)
		}
		if s.proc.Stats().OutageMS < 1000 {
			t.Errorf("OutageMS = %v", s.proc.Stats().OutageMS)
		}
		server.start()
		s.well()
	})
	t.Run("gone at the start", func(t *testing.T) {
		_, err := lazyrestore.Restore(t.Context(), "tcp://127.0.0.1:1/img", lazily)
		if err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") {
			t.Errorf("Restore: %v", err)
		}
	})
}

// A process that still misses memory of a server can be checkpointed: the new
// image stands alone.
func TestCheckpointWhileRemote(t *testing.T) {
	t.Parallel()
	s := start(t, "look")
	s.checkpoint(plainest)
	root := t.TempDir()
	server := newSite(t, root)
	s.publish(root, "img", server)
	s.restore(lazily)
	s.checkpoint(plainest)
	server.stop()
	s.release()
	s.restore(filling)
	s.well()
}

// A lockedLog is written to by several goroutines.
type lockedLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A cache on a disk that takes nothing is gone without, and that is said.
func TestCacheWithoutRoom(t *testing.T) {
	uffdtest.Need(t, "root")
	s := start(t, "look")
	s.checkpoint(plainest)
	root, disk := t.TempDir(), t.TempDir()
	s.publish(root, "img", newSite(t, root))
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "mode=0700,nr_inodes=1"); err != nil { // one is its own
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	opts := filling
	for _, cache := range []string{disk, filepath.Join(disk, "cache")} {
		var log lockedLog
		opts.Source.Cache, opts.Logger = cache, slog.New(slog.NewTextHandler(&log, nil))
		s.restore(opts)
		if err := s.proc.WaitPager(); err != nil {
			t.Fatal(err)
		}
		s.endRestored()
		if !strings.Contains(log.String(), "without the cache") {
			t.Errorf("cache in %s: the log is %q", cache, log.String())
		}
	}
	if err := unix.Mount("", disk, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	s.restore(opts)
	s.release()
	s.well()
}
