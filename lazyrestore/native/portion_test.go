package native

import (
	"encoding/binary"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// A table that is handed over in pieces is run from one end to the other, waits
// for each piece, also where it is woken too early, and has the result of each
// step where it is looked for.
func TestTableInPortions(t *testing.T) {
	const base = 1 << 40
	for _, timed := range []bool{false, true} {
		t.Run("timed "+strconv.FormatBool(timed), func(t *testing.T) {
			buf := make([]byte, 4*page.Size)
			p := &program{base: base, buf: buf, arena: proc.ArenaOver(base, buf), timed: timed}
			p.alloc(page.Size)
			run := &portionRun{p: p, at: firstTable}
			var table table
			var want []uint64
			pieces := []int{3, 1, 4}
			for i, piece := range pieces {
				for range piece {
					nr := uint64(1000 + len(table.steps))
					table.call("step", uintptr(nr), 1, 2)
					want = append(want, nr)
				}
				last := i == len(pieces)-1
				if err := p.hand(&table, last); err != nil {
					t.Fatal(err)
				}
				if ended := run.on(); ended != last {
					t.Fatalf("piece %d: at its end: %v", i, ended)
				}
			}
			if !slices.Equal(run.numbers, want) {
				t.Errorf("it runs %d, want %d", run.numbers, want)
			}
			for i := range table.steps {
				if ret, done := p.result(&table, i); !done || ret != int64(1000+i) {
					t.Errorf("step %d gave %d, %v", i, ret, done)
				}
			}
		})
	}
}

// A portionRun does what the loop of a process does: it goes from entry to entry
// and stores a result in each, here the call's number.
type portionRun struct {
	p       *program
	at      uint64
	numbers []uint64 // of the calls, but for waits and readings of the clock
}

// on goes on until the table ends, or waits: it is woken three times for nothing.
func (r *portionRun) on() (ended bool) {
	p := r.p
	word := func(at uint64) uint64 { return binary.LittleEndian.Uint64(p.buf[at:]) }
	for woken := 0; ; {
		switch nr := word(r.at); nr {
		case ^uint64(0):
			return true
		case ^uint64(1):
			r.at = word(r.at+16) - p.base
			continue
		case unix.SYS_FUTEX | proc.MayFail:
			value := binary.LittleEndian.Uint32(p.buf[word(r.at+8)-p.base:])
			if uint64(value) == word(r.at+24) {
				if woken++; woken > 3 {
					return false
				}
			}
		case unix.SYS_CLOCK_GETTIME | proc.MayFail:
		default:
			r.numbers = append(r.numbers, nr)
		}
		binary.LittleEndian.PutUint64(p.buf[r.at+proc.CallSize-8:], word(r.at))
		r.at += proc.CallSize
	}
}
