package native

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// TerminalModes are a struct termios of the kernel, as ioctl_tty(2) has it; no bytes: not known.
type TerminalModes []byte

// termiosSize is that of the kernel's struct termios: four flags, the line
// discipline, and 19 characters.
const termiosSize = 4*4 + 1 + 19

func (c *coder) modes(st *State) {
	c.bytes((*[]byte)(&st.Modes))
	if n := len(st.Modes); n != 0 && n != termiosSize {
		c.fail("terminal modes of %d bytes", n)
	}
}

func modesOf(t *unix.Termios) TerminalModes {
	var b TerminalModes
	for _, flags := range [...]uint32{t.Iflag, t.Oflag, t.Cflag, t.Lflag} {
		b = binary.LittleEndian.AppendUint32(b, flags)
	}
	return append(append(b, t.Line), t.Cc[:]...)
}

// On is t with these modes. What the line itself is, its speed and the like, stays.
func (m TerminalModes) On(t unix.Termios) unix.Termios {
	if len(m) != termiosSize {
		return t
	}
	for i, flags := range [...]*uint32{&t.Iflag, &t.Oflag, nil, &t.Lflag} {
		if flags != nil {
			*flags = binary.LittleEndian.Uint32(m[4*i:])
		}
	}
	copy(t.Cc[:], m[termiosSize-len(t.Cc):])
	return t
}

// foreground is the controlling terminal of a process that is looked at.
type foreground struct {
	device uint64 // 0: it has none
	has    bool   // the process is in its foreground: its modes are those that the process wants
}

func foregroundOf(stat *proc.Stat) foreground {
	// The number has 12 bits of a major one amid 20 of a minor one.
	nr := uint32(stat.TTY)
	if nr == 0 {
		return foreground{}
	}
	return foreground{unix.Mkdev(nr>>8&0xfff, nr&0xff|nr>>12&0xfff00), stat.ForegroundPGRP == stat.PGRP}
}

// onTerminal reports whether d is the controlling terminal: by its own name, or as /dev/tty.
func (c *capture) onTerminal(d *descriptor) bool {
	return c.terminal.device != 0 && d.stat.Mode&unix.S_IFMT == unix.S_IFCHR &&
		(d.stat.Rdev == c.terminal.device || d.stat.Rdev == unix.Mkdev(5, 0))
}

// terminalModes reads the modes of the terminal through any descriptor of it.
func (c *capture) terminalModes() error {
	if !c.terminal.has {
		return nil
	}
	for i := range c.fds.list {
		d := &c.fds.list[i]
		if !c.onTerminal(d) || d.flags()&unix.O_PATH != 0 {
			continue
		}
		return c.withFD(d, func(fd int) error {
			if t, err := unix.IoctlGetTermios(fd, unix.TCGETS); err == nil { // EIO: it was hung up
				c.st.Modes = modesOf(t)
			}
			return nil
		})
	}
	return nil
}

// lostTerminal tells of a process that had a controlling terminal and gets none.
func (r *reopener) lostTerminal() {
	if r.st.Session.Terminal && (!r.opts.Terminal || r.opts.PIDNamespace) {
		r.warnings = append(r.warnings, "the process had a controlling terminal and has none now: no key sends it a signal, and a shell has no job control")
	}
}

// openTerminal opens the terminal that is ours.
func (r *reopener) openTerminal(o *Open) (int, error) {
	if !r.opts.Terminal {
		r.refused.add("the controlling terminal, which the process has open as "+o.Path, "this restore has none to give",
			"restore it in the foreground on a terminal, or have /dev/null in its place with --stdio=saved")
		return -1, nil
	}
	fd, err := unix.Open("/dev/tty", int(reopenFlags(o.Flags))|unix.O_NOCTTY, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/tty: %w", err)
	}
	return r.raise(fd)
}
