package native

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// See <linux/securebits.h>.
const (
	secNoSetuidFixup = 1 << 2 // a change of user leaves capabilities alone
	secKeepCaps      = 1 << 4
)

// credentials plans what a thread sets to be who it was. Nothing is planned
// where the restoring command is the same already.
//
// A change of user would take the capabilities that later steps need, the one
// for the file system's user among them, so that is switched off meanwhile;
// where the restoring command may not (CAP_SETPCAP), they are kept and raised
// again. The last to go are capabilities, and the bits that guard them.
func (b *builder) credentials(t *table) {
	want, have := &b.st.Creds, &b.creds
	if want.equal(have) {
		return
	}
	mayPCap := have.Eff&(1<<unix.CAP_SETPCAP) != 0
	if mayPCap {
		t.call("keep capabilities over the change of user", unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, have.SecureBits|secNoSetuidFixup|secKeepCaps)
	} else {
		t.call("keep capabilities over the change of user", unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1)
	}
	b.groupsAndUsers(t)
	for c := range uint64(64) {
		if want.Amb&(1<<c) != 0 {
			t.call("raise ambient capability", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, c, 0, 0).on(strconv.Itoa(int(c)))
		}
		if have.Amb&^want.Amb&(1<<c) != 0 {
			t.call("lower ambient capability", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_LOWER, c, 0, 0).on(strconv.Itoa(int(c)))
		}
	}
	for c := range uint64(64) {
		if have.Bnd&^want.Bnd&(1<<c) != 0 {
			t.call("drop from the bounding set capability", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c).on(strconv.Itoa(int(c)))
		}
	}
	switch {
	case mayPCap || want.SecureBits != have.SecureBits:
		t.call("set the secure bits", unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, want.SecureBits)
	default:
		t.call("do not keep capabilities any more", unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 0)
	}
	b.capabilities(t, want.Eff, want.Prm, want.Inh)
}

// groupsAndUsers plans ids; behind them all capabilities that the restoring
// command has are in force, and the inheritable ones are the process's.
func (b *builder) groupsAndUsers(t *table) {
	want, have := &b.st.Creds, &b.creds
	if !slices.Equal(want.Groups, have.Groups) {
		groups, list := b.prog.alloc(4*len(want.Groups) + 4)
		for i, g := range want.Groups {
			binary.NativeEndian.PutUint32(list[4*i:], g)
		}
		t.call("set the groups", unix.SYS_SETGROUPS, uint64(len(want.Groups)), groups)
	}
	t.call("set the group ids", unix.SYS_SETRESGID, uint64(want.GID[0]), uint64(want.GID[1]), uint64(want.GID[2]))
	t.call("set the user ids", unix.SYS_SETRESUID, uint64(want.UID[0]), uint64(want.UID[1]), uint64(want.UID[2]))
	b.capabilities(t, have.Prm, have.Prm, want.Inh)
	if want.GID[3] != want.GID[1] {
		t.call("set the file system group id", unix.SYS_SETFSGID, uint64(want.GID[3]))
		t.call("look at the file system group id", unix.SYS_SETFSGID, ^uint64(0)).returns(uint64(want.GID[3]))
	}
	if want.UID[3] != want.UID[1] {
		t.call("set the file system user id", unix.SYS_SETFSUID, uint64(want.UID[3]))
		t.call("look at the file system user id", unix.SYS_SETFSUID, ^uint64(0)).returns(uint64(want.UID[3]))
	}
}

// capabilities plans a capset(2).
func (b *builder) capabilities(t *table, effective, permitted, inheritable uint64) {
	hdr, h := b.prog.alloc(8)
	binary.NativeEndian.PutUint32(h, unix.LINUX_CAPABILITY_VERSION_3)
	data, d := b.prog.alloc(24)
	for i, v := range []uint32{
		uint32(effective), uint32(permitted), uint32(inheritable),
		uint32(effective >> 32), uint32(permitted >> 32), uint32(inheritable >> 32),
	} {
		binary.NativeEndian.PutUint32(d[4*i:], v)
	}
	t.call("set the capabilities", unix.SYS_CAPSET, hdr, data)
}

// lateDumpable reports whether the dumpable flag has to wait until all threads
// are who they were: each change of credentials clears it for all.
func (b *builder) lateDumpable() bool {
	return len(b.st.Threads) > 1 && !b.st.Creds.equal(&b.creds)
}

// setDumpable sets it then: every other thread sleeps, its table done.
func (b *builder) setDumpable(tr *proc.Tracer, tid int) error {
	if b.st.Dumpable > 1 || !b.lateDumpable() {
		return nil
	}
	insn, err := b.syscallInsn()
	if err != nil {
		return err
	}
	ret, err := tr.FinalSyscall(tid, insn, unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, b.st.Dumpable)
	if errno, failed := proc.Errno(ret); err == nil && failed {
		err = errno
	}
	if err != nil {
		return fmt.Errorf("set dumpable: %w", err)
	}
	return nil
}

func (c *Creds) equal(o *Creds) bool {
	return c.UID == o.UID && c.GID == o.GID && slices.Equal(c.Groups, o.Groups) &&
		c.Inh == o.Inh && c.Prm == o.Prm && c.Eff == o.Eff && c.Bnd == o.Bnd && c.Amb == o.Amb && c.SecureBits == o.SecureBits
}
