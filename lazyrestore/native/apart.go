package native

import (
	"encoding/binary"
	"errors"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// Threads may part from their process, and the kernel may hold for either what
// nobody can read. None of it can be made again.

// threadApart refuses a thread that is not as its process's first is.
func (c *capture) threadApart(tid int, s *proc.Status) error {
	if tid == c.pid {
		return nil
	}
	name := threadName(tid)
	for _, line := range s.Unknown {
		if !slices.Contains(c.status.Unknown, line) {
			c.refused.add("/proc/"+strconv.Itoa(tid)+": "+line, "it is not known to this version", "report it")
		}
	}
	c.threadCredentials(tid, s)
	if s.NoNewPrivs != c.status.NoNewPrivs {
		c.refused.add(name, "it has no_new_privs, or lacks it, unlike the first thread", "set it for all threads")
	}
	if s.Seccomp != 0 {
		c.refused.add(name, "it has system call filters", helpCRIU)
		c.mute = true // a filter may kill for what it would be asked by
	}
	if s.Speculation != c.status.Speculation {
		c.refused.add(name, "its speculation control differs from the process's", "")
	}
	if s.ThreadFeatures != "" && c.status.ThreadFeatures == "" {
		c.refused.add(name, "it has a shadow stack", helpShadowStack)
	}
	if err := c.threadShares(tid); err != nil {
		return err
	}
	return c.threadNamespaces(tid)
}

// threadCredentials refuses a thread that is somebody else than its process.
func (c *capture) threadCredentials(tid int, s *proc.Status) {
	if own := credsOf(s); !own.equal(&c.st.Creds) {
		c.refused.add(threadName(tid), "its credentials differ from the process's", helpCRIU)
	}
}

const helpShadowStack = "start the program with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off"

// threadNamespaces refuses a thread that lives elsewhere than its process.
func (c *capture) threadNamespaces(tid int) error {
	theirs, err := proc.ReadNamespaces(tid)
	if err != nil {
		return err
	}
	for i, ns := range theirs {
		if i < len(c.nspaces) && ns != c.nspaces[i] {
			c.refused.add(threadName(tid), "it has a "+ns.Name+" namespace of its own: "+ns.Link, helpCRIU)
		}
	}
	return nil
}

// threadRegisters refuses what a thread has beside its general and extended
// registers: port permissions and segments of 32-bit code.
func (f *Frozen) threadRegisters(tid int) error {
	for _, set := range [...]struct {
		number uintptr
		why    string
	}{
		{proc.RegSetIOPerm, "it may use I/O ports (ioperm)"},
		{proc.RegSetTLS, "it has segments of its own (set_thread_area)"},
	} {
		b, err := f.tracer.GetRegSet(tid, set.number)
		if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EIO) {
			continue // there is nothing of the kind, or no such set
		}
		if err != nil {
			return err
		}
		if !allZero(b) {
			f.c.refused.add(threadName(tid), set.why, helpCRIU)
		}
	}
	return nil
}

// A thread may have registered rings of io_uring, each in one of a few slots, and closed
// their descriptors: what is left is in no list. See <linux/io_uring.h>.
const (
	ringSlots         = 16
	enterRegistered   = 1 << 4 // IORING_ENTER_REGISTERED_RING (Linux 5.18)
	noRing, noRingYet = -int64(unix.EBADF), -int64(unix.EINVAL)
)

// askRing enters the ring in a slot, for nothing; answer has the result.
func askRing(slot uint64, answer func(ret int64)) asked {
	return asked{call(unix.SYS_IO_URING_ENTER|proc.MayFail, slot, 0, 0, enterRegistered, 0, 0), answer}
}

// rings refuses a thread that has such rings. first is the answer of the first slot,
// which also tells whether there are slots.
func (q *questions) rings(th *Thread, first int64) error {
	if first == noRingYet || first == -int64(unix.ENOSYS) {
		return nil
	}
	found := first != noRing
	err := q.ask(th.TID, 0, func() (list []asked) {
		for slot := uint64(1); slot < ringSlots; slot++ {
			list = append(list, askRing(slot, func(ret int64) { found = found || ret != noRing }))
		}
		return list
	})
	if found {
		q.f.c.refused.add(threadName(th.TID), "it has an io_uring, without a descriptor (registered)", "")
	}
	return err
}

// queued gives pending signals that have no entry in the queue, because it was
// full, the one that the kernel would make up.
func queued(list [][]byte, pending uint64) [][]byte {
	for _, info := range list {
		pending &^= 1 << (signalOf(info) - 1)
	}
	for sig := range numSignals {
		if pending&(1<<sig) != 0 {
			info := make([]byte, proc.SiginfoSize) // SI_USER, from process and user 0
			binary.NativeEndian.PutUint32(info, uint32(sig+1))
			list = append(list, info)
		}
	}
	return list
}
