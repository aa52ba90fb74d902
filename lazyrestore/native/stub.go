package native

import (
	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// The stub is the executable that becomes the process: one page, made for
// each restore, with no code but the loop that runs tables of system calls.
// Its own table maps the program and goes on there, so that nothing of the
// stub is mapped when the program sets the link to the real executable.

// Places in the program's first page, behind the loop: the table that the stub
// goes on with; the word at which it waits until it is traced: the stop at
// its end would else be one that nobody sees; the word that it sets when it
// comes to that; those for eager pages that are written from here: the one
// that it sets when all is mapped, and the one at which it waits for them; how
// many portions of its table it may run; and the word at which the first thread
// waits for those that another makes.
const (
	firstTable   = page.Size / 2
	gateOffset   = page.Size - 8
	builtOffset  = page.Size - 16
	mappedOffset = page.Size - 24
	eagerOffset  = page.Size - 32
	givenOffset  = page.Size - 40
	othersOffset = page.Size - 48
)

// stubImage is the stub as an ELF executable for address at, which maps the
// program of size bytes from descriptor fd at base, waits at the gate, and
// starts the program's first table.
func stubImage(at, base, size uint64, fd int) ([]byte, error) {
	const rwx = unix.PROT_READ | unix.PROT_WRITE | unix.PROT_EXEC
	return proc.TableELF(at, proc.EndTrap, func(*proc.Arena) ([]proc.Call, error) {
		return []proc.Call{
			{NR: unix.SYS_MMAP, Args: [6]uint64{base, size, rwx, unix.MAP_SHARED | unix.MAP_FIXED_NOREPLACE, uint64(fd), 0}},
			{NR: unix.SYS_FUTEX | proc.MayFail, Args: [6]uint64{base + gateOffset, futexWait, 0}}, // EAGAIN: it is open
			proc.Jump(base, base+firstTable),
		}, nil
	})
}

const (
	futexWait   = 0 // FUTEX_WAIT, between processes
	futexWake   = 1
	futexWakeOp = 5
	futexSetOne = 1 << 12 // FUTEX_OP(FUTEX_OP_SET, 1, FUTEX_OP_CMP_EQ, 0)
)

// tellBuilt has the process wake the one who waits for it, just before it
// stops: who sleeps in wait4(2) cannot also wait for a time only.
func (b *builder) tellBuilt(t *table) {
	b.tell(t, "tell that it is built", builtOffset)
}

// tell has the process set a word of the first page, and wake who waits for it.
func (b *builder) tell(t *table, what string, offset uint64) {
	at := b.prog.base + offset
	t.call(what, unix.SYS_FUTEX, at, futexWakeOp, 1, 0, at, futexSetOne).mayFail()
}

// hole finds the middle of the largest range of addresses that neither a mapping
// nor the vDSO uses: as far as can be from all that grows.
func (st *State) hole() page.Addr {
	best := page.Range{Start: 1 << 20, End: 1 << 20}
	last, vdso := best.Start, page.RangeOf(st.VDSO.Map, st.VDSO.Size)
	try := func(start, end page.Addr) {
		if r := (page.Range{Start: start, End: end}); r.Len() > best.Len() {
			best = r
		}
	}
	gap := func(end page.Addr) {
		if used := vdso.Intersect(page.Range{Start: last, End: end}); !used.Empty() {
			try(last, used.Start)
			last = used.End
		}
		try(last, end)
	}
	for i := range st.VMAs {
		gap(st.VMAs[i].Start)
		last = max(last, st.VMAs[i].End)
	}
	gap(taskSize)
	return (best.Start + page.Addr(best.Len()/2)).Down()
}
