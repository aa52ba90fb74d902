package proc

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Namespace is one that a task lives in, or that its children will.
type Namespace struct {
	Name string // "net", "pid_for_children"
	Link string // what tells it from others: "net:[4026531840]"; empty: none yet
}

// namespaceNames are those of this kernel.
func namespaceNames(dir int) ([]string, error) {
	var names []string
	buf := make([]byte, 1024)
	for {
		n, err := unix.ReadDirent(dir, buf)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			slices.Sort(names)
			return names, nil
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}

// ReadNamespaces lists the namespaces of a process or thread by name.
func ReadNamespaces(tid int) ([]Namespace, error) {
	fail := func(err error) ([]Namespace, error) {
		if goneError(err) {
			err = ErrNoProcess
		}
		return nil, fmt.Errorf("read the namespaces of task %d: %w", tid, err)
	}
	dir, err := open(pathOf(tid, "ns"), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(dir)
	names, err := namespaceNames(dir)
	if err != nil {
		return fail(err)
	}
	list := make([]Namespace, 0, len(names))
	buf := make([]byte, 128)
	for _, name := range names {
		n, err := unix.Readlinkat(dir, name, buf)
		if err != nil && !errors.Is(err, unix.ENOENT) { // a pid namespace without a process yet
			return fail(err)
		}
		list = append(list, Namespace{name, string(buf[:max(n, 0)])})
	}
	return list, nil
}
