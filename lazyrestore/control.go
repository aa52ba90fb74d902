package lazyrestore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/native"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// Each pager listens on a unix socket, RUNDIR/PID.sock, and answers one
// request a connection: the client sends a word and a newline, the pager one
// JSON object, and both close. It is how a checkpoint of a process that is
// still lazy learns what is missing.

// controlReply is what a pager says of itself.
type controlReply struct {
	PID     int         `json:"pid"`
	Image   string      `json:"image"`  // path of the image that pages come from
	Digest  string      `json:"digest"` // of that image
	Missing [][3]uint64 `json:"missing,omitempty"`
	Parted  [][5]uint64 `json:"parted,omitempty"`  // missing shared memory that may be mapped nowhere: image address, length; of its object image address, device, inode
	Unknown []string    `json:"unknown,omitempty"` // memory of which nobody knows what it holds
	Stats   Stats       `json:"stats"`
}

const (
	askStatus  = "status"
	askMissing = "missing"

	// controlTimeout is for what comes at once: a request, and the answer of a pager that runs, but is stopped.
	controlTimeout = 8 * time.Second
	// missingTime is how long a pager waits until it can tell what is missing.
	missingTime = 6 * time.Second
	// answerTime is how long one that runs is waited for: for 20 s at a stretch, and half of the time then, it may look at threads
	// (the pager's maxLooks), during which it answers nobody. Twice if what is missing is asked for.
	answerTime = 60 * time.Second
)

// RunDir is the directory in which pagers keep their sockets and logs:
// /run/lazyrestore for root, else $XDG_RUNTIME_DIR/lazyrestore, else (without that
// variable, or if it is no absolute path) lazyrestore-UID below $TMPDIR or /tmp. It
// need not be there.
func RunDir() string {
	if os.Geteuid() == 0 {
		return "/run/lazyrestore"
	}
	if d := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(d) {
		return filepath.Join(d, "lazyrestore")
	}
	return filepath.Join(os.TempDir(), "lazyrestore-"+strconv.Itoa(os.Geteuid()))
}

func controlPath(pid int) string { return filepath.Join(RunDir(), strconv.Itoa(pid)+".sock") }

// control is the listening side.
type control struct {
	fd     int
	wake   int // eventfd that ends serve
	path   string
	file   os.FileInfo // of path, as it was made
	answer func(word string) controlReply
	done   chan struct{}
	once   sync.Once // of close
}

// listenControl starts to answer for the pager of process pid.
func listenControl(pid int, answer func(string) controlReply) (*control, error) {
	dir := RunDir()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := ours(dir); err != nil {
		return nil, err
	}
	c := &control{path: controlPath(pid), answer: answer, done: make(chan struct{})}
	var err error
	if c.fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return nil, fmt.Errorf("make the control socket: %w", err)
	}
	// What lies there is of an earlier process with this id: we have the id now.
	_ = os.Remove(c.path)
	if err := unix.Bind(c.fd, &unix.SockaddrUnix{Name: c.path}); err != nil {
		unix.Close(c.fd)
		return nil, fmt.Errorf("bind %s: %w", c.path, err)
	}
	if err = os.Chmod(c.path, 0o600); err == nil {
		c.file, err = os.Lstat(c.path)
	}
	if err == nil {
		err = unix.Listen(c.fd, unix.SOMAXCONN)
	}
	if err == nil {
		c.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC)
	}
	if err != nil {
		unix.Close(c.fd)
		_ = os.Remove(c.path)
		return nil, fmt.Errorf("listen on %s: %w", c.path, err)
	}
	go c.serve()
	go sweepControls(dir, c.path)
	return c, nil
}

// sweepControls removes the sockets of pagers that were killed: nobody listens
// there. One that is just being made is left alone.
func sweepControls(dir, own string) {
	sockets, err := filepath.Glob(filepath.Join(dir, "*.sock"))
	if err != nil {
		return
	}
	for _, path := range sockets {
		info, err := os.Lstat(path)
		if err != nil || path == own || info.Mode()&os.ModeSocket == 0 || time.Since(info.ModTime()) < sweepAge {
			continue
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return
		}
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); errors.Is(err, unix.ECONNREFUSED) {
			removeSame(path, info)
		}
		unix.Close(fd)
	}
}

// removeSame removes a socket, but not the one that the next pager has made there: an
// id is free as soon as its process was waited for. So is the number of an inode that nobody holds.
func removeSame(path string, was os.FileInfo) {
	if is, err := os.Lstat(path); err == nil && os.SameFile(was, is) && is.ModTime().Equal(was.ModTime()) {
		_ = os.Remove(path)
	}
}

const sweepAge = 10 * time.Second

// ours refuses a directory that somebody else could have laid there, below
// /tmp, to answer in a pager's place.
func ours(dir string) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: dir, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return fmt.Errorf("%s is not a directory of this user alone", dir)
	}
	return nil
}

// close ends the service and waits for it. It may be called again.
func (c *control) close() {
	if c == nil {
		return
	}
	c.once.Do(func() {
		unix.Write(c.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		<-c.done
		removeSame(c.path, c.file)
		unix.Close(c.fd)
		unix.Close(c.wake)
	})
}

func (c *control) serve() {
	defer close(c.done)
	for {
		p := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}, {Fd: int32(c.wake), Events: unix.POLLIN}}
		if _, err := unix.Poll(p, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		if p[1].Revents != 0 {
			return
		}
		fd, _, err := unix.Accept4(c.fd, unix.SOCK_CLOEXEC)
		if err != nil {
			continue
		}
		c.one(fd)
	}
}

// one answers one client, which may be slow but not for long.
func (c *control) one(fd int) {
	f := socketFile(fd)
	defer f.Close()
	word := make([]byte, 16)
	n, err := f.Read(word)
	if err != nil || n == 0 || word[n-1] != '\n' {
		return
	}
	_ = json.NewEncoder(f).Encode(c.answer(string(word[:n-1])))
}

// socketFile wraps a blocking socket whose reads and writes give up in time.
func socketFile(fd int) *os.File {
	tv := unix.NsecToTimeval(int64(controlTimeout))
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv)
	return os.NewFile(uintptr(fd), "control socket")
}

// errNoPager says that no pager answers for a process, errPagerKilled that
// there was one: its keeper still holds the socket.
var (
	errNoPager     = errors.New("no pager answers for the process")
	errPagerKilled = errors.New("the pager of the process was killed")
)

// askPager asks the pager of process pid. One that leaves, or is killed, before it
// answers cuts the connection off: whoever asks again is told which.
func askPager(ctx context.Context, pid int, word string) (*controlReply, error) {
	const most = 5
	for try := 1; ; try++ {
		reply, err := askOnce(ctx, pid, word)
		if try == most || !isCutOff(err) {
			return reply, err
		}
	}
}

func isCutOff(err error) bool {
	return errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) || errors.Is(err, io.EOF)
}

func askOnce(ctx context.Context, pid int, word string) (*controlReply, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	path := controlPath(pid)
	if err := ours(RunDir()); errors.Is(err, unix.ENOENT) {
		return nil, errNoPager
	} else if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := socketFile(fd)
	defer f.Close()
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
			return nil, errNoPager
		}
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	pager := listenerOf(fd)
	defer pager.close()
	if pager.ended() {
		return nil, errPagerKilled
	}
	if _, err := io.WriteString(f, word+"\n"); err != nil {
		return nil, fmt.Errorf("ask the pager of process %d: %w", pid, err)
	}
	var reply controlReply
	answer := answerReader{f, func() error { return pager.awaitAnswer(ctx, fd, controlTimeout, answerTime) }}
	err = json.NewDecoder(io.LimitReader(answer, 1<<30)).Decode(&reply)
	if err != nil {
		return nil, fmt.Errorf("ask the pager of process %d: %w", pid, err)
	}
	if reply.PID != pid {
		return nil, fmt.Errorf("ask the pager of process %d: it answers for %d", pid, reply.PID)
	}
	return &reply, nil
}

// An answerReader awaits each part of an answer: whoever gives it may be killed in the midst of a long one.
type answerReader struct {
	from  io.Reader
	await func() error
}

func (a answerReader) Read(p []byte) (int, error) {
	if err := a.await(); err != nil {
		return 0, err
	}
	return a.from.Read(p)
}

// A listener is the process that listens at the other end of a unix socket.
type listener struct {
	pid  int // 0 if that cannot be told, as for a process of another pid namespace
	fd   int // its pidfd, or -1
	gone bool
}

// listenerOf is who listens at the other end of fd, which is connected. Since
// Linux 6.5 the socket itself knows the process; before, its id has to do, which may be another's by now.
func listenerOf(fd int) listener {
	l := listener{fd: -1}
	if cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
		l.pid = int(cred.Pid)
	}
	pidfd, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if errors.Is(err, unix.ENOPROTOOPT) && l.pid != 0 {
		pidfd, err = unix.PidfdOpen(l.pid, 0)
	}
	switch {
	case err == nil:
		l.fd = pidfd
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.EINVAL): // there is no process any more; kernels differ in the word
		l.gone = true
	}
	return l
}

// awaitAnswer waits until there is something to be read from fd, which l listens to: as long as limit while l runs, as grace if it
// is stopped. errPagerKilled: it has ended; the keeper holds the socket, so that it is not cut off.
func (l listener) awaitAnswer(ctx context.Context, fd int, grace, limit time.Duration) error {
	const step = 100 * time.Millisecond // until it is looked whether ctx has ended
	began := time.Now()
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(l.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, int(step.Milliseconds())); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		waited := time.Since(began)
		switch {
		case fds[0].Revents != 0:
			return nil
		case fds[1].Revents != 0, l.gone:
			return errPagerKilled
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case waited > grace && l.stopped():
			return fmt.Errorf("no answer for %v; process %d may be stopped", waited.Round(time.Second), l.pid)
		case waited > limit:
			return fmt.Errorf("no answer of process %d for %v", l.pid, waited.Round(time.Second))
		}
	}
}

// stopped reports whether it is, by a signal or a debugger, or that cannot be told.
func (l listener) stopped() bool {
	stat, err := proc.ReadStat(l.pid)
	return err != nil || stat.State == 'T' || stat.State == 't'
}

// ended reports whether it has ended, also if nobody has waited for it yet.
func (l listener) ended() bool {
	if l.fd < 0 {
		return l.gone
	}
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}}, 0)
	return n == 1 && err == nil
}

func (l listener) close() {
	if l.fd >= 0 {
		unix.Close(l.fd)
	}
}

func (r *controlReply) mappings() []page.Mapping {
	ms := make([]page.Mapping, 0, len(r.Missing))
	for _, m := range r.Missing {
		ms = append(ms, page.Mapping{Range: page.RangeOf(page.Addr(m[0]), m[1]), Image: page.Addr(m[2]), PageSize: page.Size})
	}
	return ms
}

func (r *controlReply) parts() []native.Part {
	ps := make([]native.Part, 0, len(r.Parted))
	for _, p := range r.Parted {
		ps = append(ps, native.Part{Range: page.RangeOf(page.Addr(p[0]), p[1]), Object: page.Object{Range: page.Range{Start: page.Addr(p[2])}, Dev: p[3], Inode: p[4]}})
	}
	return ps
}
