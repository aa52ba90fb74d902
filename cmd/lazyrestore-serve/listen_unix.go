package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// A unixListener is a socket at a path, of which a lock beside it keeps others away.
type unixListener struct {
	net.Listener
	close func() error
}

// Close removes the socket, and then the lock.
func (l *unixListener) Close() error { return l.close() }

// listenUnix opens a unix socket that only this user can connect to. One that a
// killed server has left behind is taken over, by one of those that come at once.
func listenUnix(path string) (net.Listener, error) {
	lock, err := lockBeside(path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	unlock := func() error { return errors.Join(os.Remove(lock.Name()), lock.Close()) }
	if err := removeLeft(path); err != nil {
		return nil, errors.Join(err, unlock())
	}
	// Before the socket is there: nobody else is to connect in between.
	before := syscall.Umask(0o177)
	defer syscall.Umask(before)
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, errors.Join(err, unlock())
	}
	return &unixListener{ln, sync.OnceValue(func() error { return errors.Join(ln.Close(), unlock()) })}, nil
}

// removeLeft removes the socket that a killed server has left behind.
func removeLeft(path string) error {
	fi, err := os.Lstat(path)
	if err != nil || fi.Mode()&os.ModeSocket == 0 {
		return nil // to listen there will say what is wrong
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	nc, err := new(net.Dialer).DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		nc.Close()
		return fmt.Errorf("listen on %s: %w", path, errTaken)
	case errors.Is(err, syscall.ECONNREFUSED):
		return os.Remove(path)
	}
	return nil
}

var errTaken = errors.New("another server is listening there")

// lockBeside locks the file PATH.lock, which goes with the server. Without it two servers that
// come at once might each take the other one's socket for one that was left behind.
func lockBeside(path string) (*os.File, error) {
	name := path + ".lock"
	for {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
		if err != nil {
			return nil, err
		}
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil && isAt(f, name) {
			return f, nil
		}
		f.Close()
		switch {
		case errors.Is(err, syscall.EWOULDBLOCK):
			return nil, errTaken
		case err != nil:
			return nil, &os.PathError{Op: "lock", Path: name, Err: err}
		}
	}
}

// isAt reports whether a file has that name: whoever has ended has removed what he had locked.
func isAt(f *os.File, name string) bool {
	mine, err := f.Stat()
	if err != nil {
		return false
	}
	now, err := os.Lstat(name)
	return err == nil && os.SameFile(mine, now)
}
