package pager

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
	"github.com/lazyrestore/lazyrestore/uffd"
)

// disownTime is how long disown waits for threads that are about to tell of a change, and for a
// descriptor for a child that was forked, while there is nothing else to do.
const disownTime = time.Second

// disown makes ordinary memory of all that u has registered in process pid, whose pages are all resident, and reads
// what is still told, so that nobody waits for it. It is for a u that others may have open too, as who was
// taken over from and lives on: as long as they have, closing it does nothing.
//
// Mappings are unregistered as a whole, also what has grown there, which nothing told: one that
// is parted in two could not be moved. Of a process that cannot be looked at it is known where memory was registered.
func disown(u *uffd.FD, pid int, known *page.Set) error {
	return persist(disownTime, func() (some, over bool, err error) {
		some, did, err := unregister(u, pid)
		if err != nil {
			for r := range known.All() {
				_ = u.Unregister(uint64(r.Start), r.Len()) // what is not there any more cannot be
			}
		}
		// What was moved while it was looked is told only now.
		if !some && !isChanging(u) {
			return false, true, nil
		}
		read, err := drain(u)
		return did || read, false, err
	})
}

// persist calls step until that is over. It gives up when nothing was done for as long as limit, with the error of the last
// call; with any but a want of room at once.
func persist(limit time.Duration, step func() (some, over bool, err error)) error {
	for last := time.Now(); ; {
		some, over, err := step()
		late := time.Since(last) > limit
		switch {
		case over, err != nil && !noRoom(err):
			return err
		case some:
			last = time.Now()
		case late && err != nil:
			return err
		case late:
			return errUnsure
		}
		nap(gatePause)
	}
}

// unregister does so for what process pid has registered with u, and reports whether there was any, and whether
// some was done: of a process that is not that of u any more nothing can be. The error
// is that it cannot be looked at.
func unregister(u *uffd.FD, pid int) (some, did bool, err error) {
	if pid == 0 {
		return false, false, proc.ErrNoProcess // a forked child's is not known
	}
	smaps, err := proc.ReadSmaps(pid)
	for _, v := range smaps.VMAs {
		if !v.Flags.Has(proc.VMUffdMissing) {
			continue
		}
		_, err := u.Register(uint64(v.Start), v.Len(), uffd.ModeMissing)
		if errors.Is(err, unix.EBUSY) {
			continue // with another one, which older kernels would unregister
		}
		some = true // or it has changed, and is looked at again
		if err == nil {
			_ = u.Unregister(uint64(v.Start), v.Len())
			did = true
		}
	}
	return some, did, err
}

// drain reads what u tells, and reports whether it was anything. A child that was forked meanwhile misses nothing either, and its userfaultfd nobody else has.
func drain(u *uffd.FD) (some bool, err error) {
	var buf [batch]uffd.Msg
	for {
		n, err := u.Read(buf[:])
		some = some || n > 0
		for i := range buf[:n] {
			if buf[i].Event() == uffd.EventFork {
				_ = unix.Close(buf[i].Fork())
			}
		}
		switch {
		case errors.Is(err, unix.EAGAIN):
			return some, nil
		case err != nil:
			return some, err
		}
	}
}
