package native

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// A watch of an epoll instance is on a number and on the description that the
// number had when it was added. The number may have been closed since, or be
// another's, while the description lives on by another name: such a watch is
// displaced.

// A Displaced watch is one on description Target, under a number that is not
// its any more. Open and Index say which watch: of which epoll instance, which.
type Displaced struct{ Open, Index, Target uint32 }

func (c *capture) describeEpoll(d *descriptor, o *Open) error {
	o.Kind = OpenEpoll
	same := make(map[int]int) // watches on a number so far
	for _, t := range d.info.Epoll {
		nth := same[t.FD]
		same[t.FD]++
		target, displaced, err := c.watched(d, &t, nth)
		if err != nil {
			return err
		}
		if target == nil {
			c.refused.add(d.String(), "it watches what was descriptor "+strconv.Itoa(t.FD)+" once, and no descriptor refers to it now", "")
			continue
		}
		if displaced {
			// The index of its description is known when all are described.
			c.displaced = append(c.displaced, displacement{epoll: d, index: len(o.Watches), target: target})
		}
		o.Watches = append(o.Watches, Watch{FD: t.FD, Events: t.Events, Data: t.Data})
	}
	return nil
}

// A displacement is a Displaced watch as it is found.
type displacement struct {
	epoll, target *descriptor
	index         int
}

// watched finds the descriptor that an epoll instance watches.
func (c *capture) watched(epoll *descriptor, t *proc.EpollTarget, nth int) (target *descriptor, displaced bool, err error) {
	is := func(d *descriptor) (bool, error) {
		if d.stat.Ino != t.Inode {
			return false, nil
		}
		same, err := proc.Watches(c.pid, epoll.num, t.FD, nth, d.num)
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
			return d.num == t.FD, nil // a kernel that does not compare them (before 4.13)
		}
		if err != nil {
			return false, fmt.Errorf("compare descriptor %d with what %d watches: %w", d.num, epoll.num, err)
		}
		return same, nil
	}
	if d := c.fds.number(t.FD); d != nil {
		if same, err := is(d); same || err != nil {
			return d, false, err
		}
	}
	for i := range c.fds.list {
		d := &c.fds.list[i]
		if d.first != d {
			continue
		}
		if same, err := is(d); same || err != nil {
			return d, true, err
		}
	}
	return nil, false, nil
}

// noteDisplaced notes the displaced watches, when all is described.
func (c *capture) noteDisplaced() {
	for _, w := range c.displaced {
		if len(procTasks(w.target.link)) > 0 {
			c.refused.add(w.epoll.String(), w.target.String()+", which it watches, had another number then, and is about the process itself", "close one of them for the checkpoint")
		}
		c.st.Displaced = append(c.st.Displaced, Displaced{w.epoll.open, uint32(w.index), w.target.open})
	}
}

// displacedWatches plans the watches on numbers that belong to others: each
// description gets its old number for a moment. All numbers are still free.
func (b *builder) displacedWatches(t *table) {
	for _, w := range b.st.Displaced {
		watch := &b.st.Opens[w.Open].Watches[w.Index]
		fd := uint64(watch.FD)
		t.call("lend a descriptor", unix.SYS_DUP3, uint64(b.re.opens[w.Target]), fd, 0).on(strconv.Itoa(watch.FD)).returns(fd)
		b.watch(t, uint64(b.re.opens[w.Open]), watch, &b.st.Opens[w.Target])
		t.call("take the descriptor back", unix.SYS_CLOSE, fd)
	}
}

// watches plans all other watches, when the descriptors are in their places, also those
// that the process opens itself.
func (b *builder) watches(t *table) {
	displaced := make(map[[2]uint32]bool, len(b.st.Displaced))
	for _, w := range b.st.Displaced {
		displaced[[2]uint32{w.Open, w.Index}] = true
	}
	done := make(map[uint32]bool) // a shared epoll instance is filled once
	for _, f := range b.st.FDs {
		watches := b.st.Opens[f.Open].Watches
		if len(watches) == 0 || done[f.Open] {
			continue
		}
		done[f.Open] = true
		usedUp, others := 0, false // others are there already
		for i := range watches {
			w, there := &watches[i], displaced[[2]uint32{f.Open, uint32(i)}]
			if w.usedUp() {
				usedUp++
				if !there {
					b.watch(t, uint64(f.Num), w, b.st.openOf(w.FD))
				}
			} else if there {
				others = true
			}
		}
		if usedUp > 0 && !others {
			b.takeEvents(t, uint64(f.Num), usedUp)
		}
		for i := range watches {
			if w := &watches[i]; !w.usedUp() && !displaced[[2]uint32{f.Open, uint32(i)}] {
				b.watch(t, uint64(f.Num), w, b.st.openOf(w.FD))
			}
		}
	}
}

// usedUp reports whether a watch has told of the one event that it was to tell of. The
// kernel has no other flags in it then.
func (w *Watch) usedUp() bool {
	const kept = unix.EPOLLONESHOT | unix.EPOLLET | unix.EPOLLWAKEUP | unix.EPOLLEXCLUSIVE
	return w.Events&unix.EPOLLONESHOT != 0 && w.Events&^kept == 0
}

// takeEvents plans that watches which are used up, and are the only ones yet of an epoll
// instance, are so again: to every watch that is added the kernel adds errors and hang-ups,
// one of which may be there. What comes later is told of once.
func (b *builder) takeEvents(t *table, epoll uint64, n int) {
	const size = 12 // struct epoll_event
	events := b.prog.bytes(make([]byte, n*size))
	t.call("take events", unix.SYS_EPOLL_WAIT, epoll, events, uint64(n), 0)
}

// watch plans one watch of an epoll instance. What was a terminal, a socket or a pipe to the
// outside may be a file by now, or /dev/null, which are always ready and cannot be watched.
func (b *builder) watch(t *table, epoll uint64, w *Watch, target *Open) {
	num := strconv.Itoa(w.FD)
	event := b.prog.bytes(epollEvent(w))
	s := t.call("watch descriptor", unix.SYS_EPOLL_CTL, epoll, unix.EPOLL_CTL_ADD, uint64(w.FD), event).on(num)
	if target != nil && (target.Kind == OpenStdio || target.Kind == OpenNull) {
		s.mayFailWith(unix.EPERM).warns("descriptor " + num + " is not what it was, and epoll cannot watch it any more")
	}
}

// openOf is what a descriptor of the process is, or nil.
func (st *State) openOf(num int) *Open {
	i, ok := slices.BinarySearchFunc(st.FDs, num, func(f FD, num int) int { return cmp.Compare(f.Num, num) })
	if !ok {
		return nil
	}
	return &st.Opens[st.FDs[i].Open]
}

func (st *State) validDisplaced() error {
	for _, w := range st.Displaced {
		if uint64(w.Open) >= uint64(len(st.Opens)) || uint64(w.Target) >= uint64(len(st.Opens)) ||
			uint64(w.Index) >= uint64(len(st.Opens[w.Open].Watches)) {
			return fmt.Errorf("displaced watch %d of description %d is not there", w.Index, w.Open)
		}
	}
	return nil
}
