package pager

import (
	"fmt"
	"os"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd"
)

// stateName is what /proc/PID/fd shows of the memfd: memfd:lazyrestore-pager.
const stateName = "lazyrestore-pager"

// A journal writes the state that outlives the pager (see state.go). Its
// memory is populated from the start, so that the kernel can write events
// there even while the pager is being killed. Only the reader uses it.
type journal struct {
	file   int
	size   int64  // of the file
	header []byte // its mapping has the lock, see claim.go
	area   []byte
	log    []uffd.Msg // the slots of area
	pos    int        // the first slot that holds no event
	ahead  int        // slots of our own before those that slots gave
	turn   uint64
}

const (
	// batch is how many events one read may take.
	batch = 16
	// maxKeptCalls bounds how many threads at a time may drop shared memory
	// from their page tables and still be told from those that remove it.
	maxKeptCalls = 64
	// minSlots leaves room for some batches; start-up pays for each page.
	minSlots = 128
)

// newJournal makes the shared memory and writes w as its first snapshot.
func newJournal(w *world) (*journal, error) {
	file, err := unix.MemfdCreate(stateName, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make the pager's state: %w", os.NewSyscallError("memfd_create", err))
	}
	j := &journal{file: file, size: headerBytes}
	if err := unix.Ftruncate(file, j.size); err != nil {
		_ = unix.Close(file)
		return nil, fmt.Errorf("make the pager's state: %w", os.NewSyscallError("ftruncate", err))
	}
	// Locked before it is a state that somebody could go on from.
	if j.header, err = lockMap("/proc/self/fd/"+strconv.Itoa(file), headerBytes, unix.MAP_POPULATE); err != nil {
		_ = unix.Close(file)
		return nil, err
	}
	order64.PutUint64(j.header[8:], stateVersion)
	order64.PutUint64(j.header[fileOffset:], uint64(file))
	if err := j.compact(w); err != nil {
		j.close()
		return nil, err
	}
	copy(j.header, stateMagic)
	return j, nil
}

func (j *journal) mmap(off int64, n int) ([]byte, error) {
	b, err := unix.Mmap(j.file, off, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("map the pager's state: %w", os.NewSyscallError("mmap", err))
	}
	return b, nil
}

// compact writes w as a snapshot into a new area with an empty log, makes it
// the valid one, and frees the old. The log has as much room again as the
// snapshot takes, so that snapshots cost no more than events on average.
func (j *journal) compact(w *world) error {
	n := snapshotBytes(w)
	start := int(logStart(uint64(n)))
	slots := max(minSlots, n/slotBytes)
	length := (start + slots*slotBytes + headerBytes - 1) &^ (headerBytes - 1)
	off := j.size
	if err := unix.Ftruncate(j.file, off+int64(length)); err != nil {
		return fmt.Errorf("grow the pager's state: %w", os.NewSyscallError("ftruncate", err))
	}
	j.size = off + int64(length)
	area, err := j.mmap(off, length)
	if err != nil {
		return err
	}
	order64.PutUint64(area, uint64(n))
	appendSnapshot(area[8:8:8+n], w)

	next := j.turn + 1
	at := j.header[areasOffset+16*(next&1):]
	oldOff, oldLen := order64.Uint64(j.header[areasOffset+16*(j.turn&1):]), len(j.area)
	order64.PutUint64(at, uint64(off))
	order64.PutUint64(at[8:], uint64(length))
	atomic.StoreUint64(word(j.header, turnOffset), next)

	if j.area != nil {
		_ = unix.Munmap(j.area)
		// Only its memory goes: addresses in the file stay what they are.
		_ = unix.Fallocate(j.file, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(oldOff), int64(oldLen))
	}
	j.turn, j.area, j.pos = next, area, 0
	j.log = messages(area[start:])
	return nil
}

// room makes sure that a batch of events fits.
func (j *journal) room(w *world) error {
	if len(j.log)-j.pos >= batch+maxKeptCalls+4 { // a note of our own before them
		return nil
	}
	return j.compact(w)
}

// slots is where the next events of space are to be read to. kept is shared
// memory that keeps its content if one of them removes it; no more than
// maxKeptCalls. The caller has made room.
func (j *journal) slots(space uint32, kept []page.Range) []uffd.Msg {
	j.put(j.pos, slotSpace, uint64(space))
	j.ahead = 1
	for _, r := range kept {
		j.put(j.pos+j.ahead, slotKept, uint64(r.Start), uint64(r.End))
		j.ahead++
	}
	return j.log[j.pos+j.ahead : j.pos+j.ahead+batch]
}

// keep makes the first n of the slots that slots returned a part of the log.
func (j *journal) keep(n int) {
	if n > 0 {
		j.pos += j.ahead + n
	}
}

// drop notes that space is no longer served. The caller has made room.
func (j *journal) drop(space uint32) { j.note(space, slotDrop) }

// say notes e, which is about what is not settled, or a removal that the kernel tells nothing of. The caller has made room.
func (j *journal) say(space uint32, e event) {
	switch {
	case e.kind == eventRemove:
		j.note(space, slotRemove, uint64(e.from.Start), uint64(e.from.End))
	case e.kind == eventLeave && e.moves:
		j.note(space, slotMoves, uint64(e.from.Start), uint64(e.from.End), uint64(e.tid))
	case e.kind == eventLeave:
		j.note(space, slotGoes, uint64(e.from.Start), uint64(e.from.End), uint64(e.tid))
	case e.kind == eventForce:
		j.note(space, slotForce)
	case e.sure:
		j.note(space, slotSure)
	default:
		j.note(space, slotUnsure)
	}
}

// came notes that space, which was expected, is there, and fd its userfaultfd.
// The caller has made room.
func (j *journal) came(space uint32, fd int) { j.note(space, slotCame, uint64(fd)) }

// note puts down an event of our own.
func (j *journal) note(space uint32, kind byte, words ...uint64) {
	// In this order, so that the log never has that of another space.
	j.put(j.pos, slotSpace, uint64(space))
	j.put(j.pos+1, kind, words...)
	j.pos += 2
}

// spoil makes the state one that nobody can go on from: the events do not say
// all.
func (j *journal) spoil() { clear(j.header[:len(stateMagic)]) }

// put writes a slot of our own: what it means last, in one store.
func (j *journal) put(i int, kind byte, words ...uint64) {
	b := slotOf(&j.log[i])
	for k, v := range words {
		atomic.StoreUint64(word(b, 8+8*k), v)
	}
	atomic.StoreUint64(word(b, 0), uint64(kind))
}

// leave ends the writing, and lets a successor have what is written. A second call does nothing.
func (j *journal) leave() {
	if j.area != nil {
		_ = unix.Munmap(j.area)
	}
	if j.header != nil {
		_ = unix.Munmap(j.header)
	}
	j.area, j.header, j.log = nil, nil, nil
}

// isLeft reports whether leave was called.
func (j *journal) isLeft() bool { return j.header == nil }

func (j *journal) close() {
	j.leave()
	_ = unix.Close(j.file)
}
