package proc

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ErrCompat says that a thread runs 32-bit code.
var ErrCompat = errors.New("the thread runs 32-bit code")

// codeSegment is CS of a thread in 64-bit code.
const codeSegment = 0x33

// context reads the registers that a stopped task is to have when it goes on.
// They are those that it has, unless it stands in a restartable sequence: the
// kernel aborts that in a task that has been off its processor, but could not
// tell once the task has run code of ours in between. A task that was started,
// not seized, is in none: it runs tables only, and its memory may be missing.
func (t *Tracer) context(k *task) (Regs, error) {
	var r Regs
	if err := getRegs(k.tid, &r); err != nil {
		return r, taskError("read the registers of", k.tid, err)
	}
	if r[CS] != codeSegment {
		return r, fmt.Errorf("task %d: %w", k.tid, ErrCompat)
	}
	if !k.seized {
		return r, nil
	}
	c, err := getRSeq(k.tid)
	if errors.Is(err, unix.EIO) || (err == nil && c.pointer == 0) {
		return r, nil // none, or a kernel that cannot tell
	}
	if err != nil {
		return r, taskError("read the restartable sequences of", k.tid, err)
	}
	return r, abortRSeq(k.pid, c.pointer, &r)
}

// abortRSeq moves r out of the sequence that the struct rseq at addr says the
// thread is in, to where the kernel would: see rseq(2).
func abortRSeq(pid int, addr uint64, r *Regs) error {
	const pointer = 8 // offset of rseq_cs in struct rseq
	var word [8]byte
	if _, err := ReadMemory(pid, addr+pointer, word[:]); err != nil {
		return fmt.Errorf("restartable sequences: %w", err)
	}
	le := binary.LittleEndian
	at := le.Uint64(word[:])
	if at == 0 {
		return nil
	}
	var cs [32]byte // struct rseq_cs: version, flags, start_ip, post_commit_offset, abort_ip
	if _, err := ReadMemory(pid, at, cs[:]); err != nil {
		return fmt.Errorf("restartable sequence: %w", err)
	}
	start, length, abort := le.Uint64(cs[8:]), le.Uint64(cs[16:]), le.Uint64(cs[24:])
	if r[RIP]-start < length {
		r[RIP] = abort
	}
	return nil
}
