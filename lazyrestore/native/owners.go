package native

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// A description may have somebody who gets a signal when something happens to
// it: Open.Owner is the id, and above 32 bits what it is the id of, as in
// struct f_owner_ex; Open.Signal the signal, 0 for the usual one.

const (
	getSig = 11 // F_GETSIG
	setSig = 10 // F_SETSIG

	ownerThread  = 0 // F_OWNER_TID
	ownerProcess = 1 // F_OWNER_PID
)

// owner notes who gets the signals of d's description.
func (c *capture) owner(d *descriptor) error {
	return c.withFD(d, func(fd int) error {
		owner, err := proc.DescriptorOwner(fd)
		if err != nil {
			return fmt.Errorf("get the owner of %v: %w", d, err)
		}
		o := &c.st.Opens[d.open]
		sig, err := unix.FcntlInt(uintptr(fd), getSig, 0)
		if err != nil {
			return fmt.Errorf("get the signal of %v: %w", d, err)
		}
		o.Signal = uint64(sig)
		if owner.PID == 0 {
			return nil
		}
		if d.stat.Mode&unix.S_IFMT == unix.S_IFDIR {
			// Only files have leases, and a directory is never ready: who ordered notices is its owner.
			c.refused.add(d.String(), "notices of changes may have been ordered of it (F_NOTIFY), of which the kernel shows the owner alone", "close it for the checkpoint")
			return nil
		}
		o.Owner = int64(owner.PID) | int64(owner.Type)<<32
		own := owner.Type == ownerProcess && int(owner.PID) == c.pid
		if owner.Type == ownerThread {
			tids, err := proc.ReadTasks(c.pid)
			if err != nil {
				return err
			}
			own = slices.Contains(tids, int(owner.PID))
		}
		if !own {
			c.refused.add(d.String(), fmt.Sprintf("it sends signals to others (F_SETOWN, %d)", owner.PID), "close it for the checkpoint")
		}
		return nil
	})
}

// owners plans who gets signals from which description.
func (b *builder) owners(t *table) {
	for i := range b.st.Opens {
		o := &b.st.Opens[i]
		if o.Owner == 0 && o.Signal == 0 && o.Flags&unix.O_ASYNC == 0 {
			continue
		}
		fd, ok := b.numberOf(uint32(i))
		if !ok {
			continue
		}
		if o.Owner != 0 {
			ex := b.prog.words(uint64(o.Owner)>>32 | uint64(o.Owner)<<32)
			t.call("set the owner of", unix.SYS_FCNTL, fd, unix.F_SETOWN_EX, ex).on(o.Path)
		}
		if o.Signal != 0 {
			t.call("set the signal of", unix.SYS_FCNTL, fd, setSig, o.Signal).on(o.Path)
		}
		if o.Flags&unix.O_ASYNC != 0 {
			t.call("have signals sent from", unix.SYS_FCNTL, fd, unix.F_SETFL, uint64(o.Flags&settable)).on(o.Path)
		}
	}
}

// settable are the flags that fcntl(F_SETFL) sets.
const settable = unix.O_APPEND | unix.O_ASYNC | unix.O_DIRECT | unix.O_NOATIME | unix.O_NONBLOCK
