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
// for each piece, and has the result of each step where it is looked for.
func TestTableInPortions(t *testing.T) {
	const base = 1 << 40
	for _, timed := range []bool{false, true} {
		t.Run("timed "+strconv.FormatBool(timed), func(t *testing.T) {
			buf := make([]byte, 4*page.Size)
			p := &program{base: base, buf: buf, arena: proc.ArenaOver(base, buf), timed: timed}
			p.alloc(page.Size)
			var table table
			var want []uint64
			for i, piece := range []int{3, 1, 4} {
				for range piece {
					nr := uint64(1000 + len(table.steps))
					table.call("step", uintptr(nr), 1, 2)
					want = append(want, nr)
				}
				if i < 2 {
					want = append(want, unix.SYS_FUTEX|proc.MayFail)
				}
				if err := p.hand(&table, i == 2); err != nil {
					t.Fatal(err)
				}
			}
			if got := runPortions(t, p); !slices.Equal(got, want) {
				t.Errorf("it runs %d, want %d", got, want)
			}
			for i := range table.steps {
				if ret, done := p.result(&table, i); !done || ret != int64(1000+i) {
					t.Errorf("step %d gave %d, %v", i, ret, done)
				}
			}
		})
	}
}

// runPortions does what the loop of a process does: it goes from entry to entry and
// stores a result in each, here the call's number. It gives the numbers, but for
// readings of the clock.
func runPortions(t *testing.T, p *program) (numbers []uint64) {
	word := func(at uint64) uint64 { return binary.LittleEndian.Uint64(p.buf[at:]) }
	at, given := uint64(firstTable), uint64(0)
	for {
		switch nr := word(at); nr {
		case ^uint64(0):
			return numbers
		case ^uint64(1):
			at = word(at+16) - p.base
			continue
		default:
			if nr == unix.SYS_FUTEX|proc.MayFail {
				given++
				if v := word(at + 24); word(at+8) != p.base+givenOffset || v != given {
					t.Errorf("it waits for the word at %#x to be more than %d, want %d", word(at+8), v, given)
				}
			}
			if nr != unix.SYS_CLOCK_GETTIME|proc.MayFail {
				numbers = append(numbers, nr)
			}
			binary.LittleEndian.PutUint64(p.buf[at+proc.CallSize-8:], nr)
			at += proc.CallSize
		}
	}
}
