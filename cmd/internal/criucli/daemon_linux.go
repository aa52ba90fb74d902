package criucli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Daemons. A process cannot fork once Go's runtime runs, so --daemon starts
// the same command again in a session of its own, with its log, and a pipe
// that it says on that it is ready. Then the pid file is written, and the
// first one ends.

// readyVariable tells a daemon the descriptor on which to say so.
const readyVariable = "LAZYRESTORE_DAEMON_READY"

// Daemonize is to be called once the command line has been read and found
// good. In the process that the user started, where that asked for a daemon,
// it starts the daemon, waits until that is ready, and reports that there is
// nothing more to do; err is what went wrong on either side. Elsewhere it does
// nothing. args are the command's own, with its name.
func (o *Options) Daemonize(args []string) (done bool, err error) {
	if !o.Daemon || os.Getenv(readyVariable) != "" {
		return false, nil
	}
	self, err := os.Executable()
	if err != nil {
		return true, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return true, err
	}
	defer r.Close()
	cmd := &exec.Cmd{
		Path: self, Args: args,
		Stderr:      os.Stderr, // until it is ready: what goes wrong before there is a log
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	// Descriptors that were given by number keep it.
	files := map[int]*os.File{}
	for _, fd := range []int{o.StatusFD, o.Socket} {
		if fd > 2 {
			files[fd] = os.NewFile(uintptr(fd), "inherited")
		}
	}
	ready := 3
	for files[ready] != nil {
		ready++
	}
	files[ready] = w
	for fd := 3; len(files) > 0; fd++ {
		cmd.ExtraFiles = append(cmd.ExtraFiles, files[fd]) // nil: closed there
		delete(files, fd)
	}
	cmd.Env = append(os.Environ(), readyVariable+"="+strconv.Itoa(ready))
	if err := cmd.Start(); err != nil {
		return true, fmt.Errorf("start the daemon: %w", err)
	}
	w.Close()
	if n, _ := r.Read(make([]byte, 1)); n == 0 {
		err := cmd.Wait()
		if err == nil {
			err = errors.New("it ended before it was ready")
		}
		return true, fmt.Errorf("start the daemon: %w", err)
	}
	if o.PidFile != "" {
		if err := os.WriteFile(o.File(o.PidFile), strconv.AppendInt(nil, int64(cmd.Process.Pid), 10), 0o644); err != nil {
			return true, errors.Join(fmt.Errorf("pid file: %w", err), cmd.Process.Kill())
		}
	}
	return true, nil
}

// Ready says that requests can be handled: on the status descriptor, which it
// closes unless that is a standard one, and to who started the daemon. A daemon's standard descriptors lead
// nowhere from then on.
func (o *Options) Ready() error {
	if o.StatusFD >= 0 {
		// Not an os.File, whose finalizer closes a standard descriptor too: its
		// number would become that of something else.
		if _, err := unix.Write(o.StatusFD, []byte{0}); err != nil {
			return fmt.Errorf("status descriptor %d: %w", o.StatusFD, err)
		}
		if o.StatusFD > 2 {
			_ = unix.Close(o.StatusFD)
		}
		o.StatusFD = -1
	}
	fd, err := strconv.Atoi(os.Getenv(readyVariable))
	if err != nil {
		return nil
	}
	os.Unsetenv(readyVariable)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for i := range 3 {
		if err := unix.Dup3(int(null.Fd()), i, 0); err != nil {
			return err
		}
	}
	f := os.NewFile(uintptr(fd), "daemon's word")
	defer f.Close()
	_, err = f.Write([]byte{1})
	return err
}

// Exit prints what went wrong and is the exit status that CRIU has for it.
func Exit(stderr io.Writer, who string, err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "%s: %v\n", who, err)
	return 1
}
