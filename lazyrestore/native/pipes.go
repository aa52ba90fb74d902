package native

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// Pipes and FIFOs. A pipe is known by its inode; its capacity and the bytes
// that nobody has read are noted with the first of its descriptions.

// describePipe tells a pipe or FIFO of the process's own, both of whose ends
// are among its descriptors, or whose other end nobody has, from one to the
// outside.
func (c *capture) describePipe(d *descriptor, o *Open) error {
	o.Kind = OpenPipe
	if !strings.HasPrefix(d.link, "pipe:") {
		o.Kind = OpenFIFO
		var named unix.Stat_t
		if err := unix.Stat(d.link, &named); err != nil || named.Ino != d.stat.Ino || named.Dev != d.stat.Dev {
			c.refused.add(d.String(), "the FIFO was removed or replaced", "close it for the checkpoint")
			return nil
		}
	}
	o.Pipe = d.stat.Ino
	group := c.fds.groups[d.link]
	return c.withFD(d, func(fd int) error {
		// Who else has a FIFO is seen when all processes are looked at.
		own := o.Kind == OpenFIFO || d.reads() && d.writes() || slices.ContainsFunc(group, func(e *descriptor) bool { return e.reads() != d.reads() })
		if !own && !otherEndGone(fd, d.reads()) {
			c.describeStdio(d, o, "its other end is in another process")
			return nil
		}
		if c.pipes[o.Pipe] {
			return nil // what is in it is noted already
		}
		if c.pipes == nil {
			c.pipes = make(map[uint64]bool)
		}
		c.pipes[o.Pipe] = true
		var err error
		if o.Data, o.Size, err = pipeContent(d, fd); err != nil {
			return fmt.Errorf("copy the content of pipe %d: %w", d.num, err)
		}
		packets := slices.ContainsFunc(group, func(e *descriptor) bool { return e.flags()&unix.O_DIRECT != 0 })
		if len(o.Data) > 0 && packets {
			c.refused.add(d.String(), "it is a pipe of packets (O_DIRECT) that were not read, whose borders cannot be seen", "let the program read them first")
		}
		return nil
	})
}

// pipeContent gives what is in a pipe, and its capacity. Where all that there
// is is an end to write to, the pipe is opened once more to look.
func pipeContent(d *descriptor, fd int) ([]byte, uint64, error) {
	if d.reads() {
		return proc.CopyPipe(fd)
	}
	r, err := unix.Open(d.self, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, 0, err
	}
	defer unix.Close(r)
	return proc.CopyPipe(r)
}

// otherEndGone reports whether nobody has the other end of a pipe.
func otherEndGone(fd int, reads bool) bool {
	p := []unix.PollFd{{Fd: int32(fd)}}
	if _, err := unix.Poll(p, 0); err != nil {
		return false
	}
	if reads {
		return p[0].Revents&unix.POLLHUP != 0
	}
	return p[0].Revents&unix.POLLERR != 0
}

// pipeEnds are a pipe made anew. The first description of each end is the one
// that the pipe was made with; all others are opened.
type pipeEnds struct {
	fds   [2]int
	taken [2]bool
}

// pipe makes a pipe when its first end is asked for, with what was in it.
func (r *reopener) pipe(o *Open) (int, error) {
	p := r.pipes[o.Pipe]
	if p == nil {
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_NONBLOCK); err != nil {
			return -1, fmt.Errorf("make a pipe: %w", err)
		}
		var err error
		if p, err = r.newPipe(fds, o.Pipe); err != nil {
			return -1, err
		}
	}
	end := 0
	if o.Flags&unix.O_ACCMODE != unix.O_RDONLY {
		end = 1
	}
	if p.taken[end] || o.Flags&unix.O_ACCMODE == unix.O_RDWR {
		fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(p.fds[end]), int(reopenFlags(o.Flags)&^unix.O_NOFOLLOW), 0)
		if err != nil {
			return -1, fmt.Errorf("open a pipe again: %w", err)
		}
		return r.raise(fd)
	}
	p.taken[end] = true
	if _, err := unix.FcntlInt(uintptr(p.fds[end]), unix.F_SETFL, int(o.Flags&(unix.O_NONBLOCK|unix.O_DIRECT))); err != nil {
		return -1, fmt.Errorf("set the flags of a pipe: %w", err)
	}
	return p.fds[end], nil
}

// spareEnds gives up the ends of pipes that nobody has, when all is open: what
// watches the other ends shall see from the beginning that they are hung up.
func (r *reopener) spareEnds() {
	for _, p := range r.pipes {
		for end, taken := range p.taken {
			if !taken {
				r.giveUp(p.fds[end])
			}
		}
	}
}

// newPipe fills a pipe, of whose ends it takes ownership.
func (r *reopener) newPipe(fds [2]int, id uint64) (*pipeEnds, error) {
	p := new(pipeEnds)
	for i, fd := range fds {
		up, err := r.raise(fd)
		if err != nil {
			if i == 0 {
				unix.Close(fds[1])
			}
			return nil, err
		}
		p.fds[i] = up
	}
	if r.pipes == nil {
		r.pipes = make(map[uint64]*pipeEnds)
		r.contents = make(map[uint64]*Open)
		for i := range r.st.Opens {
			if o := &r.st.Opens[i]; (o.Kind == OpenPipe || o.Kind == OpenFIFO) && o.Size != 0 {
				r.contents[o.Pipe] = o
			}
		}
	}
	r.pipes[id] = p
	if o := r.contents[id]; o != nil {
		return p, fillPipe(p.fds[1], o)
	}
	return p, nil
}

// fifo opens a FIFO. Both its ends are held until all are open, so that no
// open waits for another.
func (r *reopener) fifo(o *Open) (int, error) {
	if r.pipes[o.Pipe] == nil {
		var st unix.Stat_t
		fd, err := unix.Open(o.Path, unix.O_RDWR|unix.O_NONBLOCK, 0)
		if err == nil {
			err = unix.Fstat(fd, &st)
		}
		switch {
		case err != nil:
			r.refused.add(o.Path, "open: "+err.Error(), "make the FIFO again")
			return -1, nil
		case st.Mode&unix.S_IFMT != unix.S_IFIFO:
			unix.Close(fd)
			r.refused.add(o.Path, "it is no FIFO any more", "make the FIFO again")
			return -1, nil
		}
		second, err := unix.Dup(fd)
		if err != nil {
			unix.Close(fd)
			return -1, err
		}
		if _, err := r.newPipe([2]int{fd, second}, o.Pipe); err != nil {
			return -1, err
		}
	}
	return r.path(o, o.Flags)
}

func fillPipe(w int, o *Open) error {
	if _, err := unix.FcntlInt(uintptr(w), unix.F_SETPIPE_SZ, int(o.Size)); err != nil {
		return fmt.Errorf("give a pipe the capacity of %d bytes: %w", o.Size, err)
	}
	for data := o.Data; len(data) > 0; {
		n, err := unix.Write(w, data)
		if err != nil {
			return fmt.Errorf("put %d bytes back into a pipe: %w", len(data), err)
		}
		data = data[n:]
	}
	return nil
}
