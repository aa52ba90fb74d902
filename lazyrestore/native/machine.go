package native

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

const (
	atSysinfoEHDR = 33 // AT_SYSINFO_EHDR: where the vDSO is
	ssOnStack     = 1
	ssDisable     = 2
	rseqCSOffset  = 8 // rseq_cs in struct rseq
)

func putWord(b []byte, v uint64) { binary.NativeEndian.PutUint64(b, v) }

// checkMachine refuses a state that this machine cannot continue. vdso is the
// kernel's own, as long as that of the state.
func checkMachine(st *State, vdso func() ([]byte, error)) error {
	var r reasons
	if st.Arch != runtime.GOARCH {
		r.add("the image", "it is of a process on "+st.Arch, "restore it on a machine of that architecture")
		return r.err()
	}
	if len(st.Threads) == 0 {
		return fmt.Errorf("%w: no thread", errState)
	}
	if st.VDSO.Map != 0 {
		text, err := vdso()
		if err != nil {
			return err
		}
		if vdsoSum(text) != st.VDSO.Sum {
			r.add("the vDSO", "the kernel that runs here has another one, and the program holds addresses in the old",
				"restore under the kernel build of the checkpoint")
		}
	}
	st.checkTimers(&r)
	return r.err()
}

// ownVDSO reads the first size bytes of this process's vDSO; every process
// under one kernel has the same.
func ownVDSO(size int) ([]byte, error) {
	auxv, err := proc.ReadAuxv(unix.Getpid())
	if err != nil {
		return nil, err
	}
	at, ok := auxv.Get(atSysinfoEHDR)
	if !ok || size <= 0 || size > 1<<20 {
		return nil, errors.New("this kernel gives processes no vDSO")
	}
	text := make([]byte, size)
	n, err := proc.ReadMemory(unix.Getpid(), at, text)
	if err != nil && n == 0 {
		return nil, fmt.Errorf("read the vDSO: %w", err)
	}
	return text[:n], nil
}

// vdsoSum leaves out the padding behind the code.
func vdsoSum(text []byte) string {
	sum := sha256.Sum256(bytes.TrimRight(text, "\x00"))
	return hex.EncodeToString(sum[:])
}

// syscallInsn finds a system call instruction in the process's vDSO.
func (b *builder) syscallInsn() (uint64, error) {
	text, err := b.vdso()
	if err != nil {
		return 0, err
	}
	off := bytes.Index(text, syscallInsn)
	if off < 0 || b.st.VDSO.Map == 0 {
		return 0, errors.New("the process has no vDSO to make a system call from")
	}
	return uint64(b.st.VDSO.Text.Start) + uint64(off), nil
}

// ownCredentials are those of this process, which the new one inherits. Single
// system calls are quicker than /proc, which is noticed in the time to the
// first instruction.
func ownCredentials() (Creds, error) {
	var c Creds
	ru, eu, su := unix.Getresuid()
	rg, eg, sg := unix.Getresgid()
	c.UID = [4]uint32{uint32(ru), uint32(eu), uint32(su), uint32(eu)}
	c.GID = [4]uint32{uint32(rg), uint32(eg), uint32(sg), uint32(eg)}
	groups, err := unix.Getgroups()
	if err != nil {
		return c, fmt.Errorf("get the groups: %w", err)
	}
	for _, g := range groups {
		c.Groups = append(c.Groups, uint32(g))
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return c, fmt.Errorf("get the capabilities: %w", err)
	}
	c.Eff = uint64(data[0].Effective) | uint64(data[1].Effective)<<32
	c.Prm = uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32
	c.Inh = uint64(data[0].Inheritable) | uint64(data[1].Inheritable)<<32
	for i := range uint(64) {
		in, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(i), 0, 0, 0)
		if err != nil {
			break // no capability of this number
		}
		c.Bnd |= uint64(in) << i
		if c.Inh&c.Prm&(1<<i) != 0 {
			if on, err := unix.PrctlRetInt(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_IS_SET, uintptr(i), 0, 0); err == nil {
				c.Amb |= uint64(on) << i
			}
		}
	}
	bits, err := unix.PrctlRetInt(unix.PR_GET_SECUREBITS, 0, 0, 0, 0)
	c.SecureBits = uint64(bits)
	return c, err
}

func credsOf(s *proc.Status) Creds {
	return Creds{
		UID: s.Uid, GID: s.Gid, Groups: s.Groups,
		Inh: s.CapInh, Prm: s.CapPrm, Eff: s.CapEff, Bnd: s.CapBnd, Amb: s.CapAmb,
	}
}

// ownLimits are the first n resource limits of this process.
func ownLimits(n int) []Limit {
	limits := make([]Limit, 0, n)
	for i := range n {
		var l unix.Rlimit
		if unix.Getrlimit(i, &l) != nil {
			break
		}
		limits = append(limits, Limit{l.Cur, l.Max})
	}
	return limits
}

// layout is what the kernel has to know at the execve, when it decides where
// later mappings go: below the room that a stack may need, or, if that has no
// bound, at the other end. A smaller stack than ours needs no more room.
func (b *builder) layout() (stack [2]uint64, persona uint64) {
	const addrCompatLayout = 0x0200000
	if i := unix.RLIMIT_STACK; i < len(b.st.Limits) && i < len(b.limits) {
		if l := b.st.Limits[i]; l.Cur > b.limits[i].Cur && l.Cur <= b.limits[i].Max {
			stack = [2]uint64{l.Cur, b.limits[i].Max}
		}
	}
	return stack, b.st.Persona & addrCompatLayout
}

// applyStdio decides what descriptors 0 to 2 become.
func applyStdio(st *State, how Stdio) {
	if how == StdioAuto {
		return
	}
	for i := range st.FDs {
		f := &st.FDs[i]
		o := &st.Opens[f.Open]
		switch {
		case how == StdioSaved && o.Kind == OpenTerminal:
			o.Kind = OpenNull
		case f.Num > 2:
		case how == StdioInherit:
			st.Opens = append(slices.Clip(st.Opens), Open{Kind: OpenStdio, Stdio: uint32(f.Num)})
			f.Open = uint32(len(st.Opens) - 1)
		case o.Kind == OpenStdio:
			o.Kind = OpenNull
		}
	}
}

// mapsSmall reports whether the kernel keeps huge pages from a mapping that is
// made with MAP_STACK, as it does since Linux 6.7.
func mapsSmall() bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var version [2]int
	rest := u.Release[:]
	for i := range version {
		for len(rest) > 0 && rest[0] >= '0' && rest[0] <= '9' {
			version[i] = 10*version[i] + int(rest[0]-'0')
			rest = rest[1:]
		}
		if len(rest) > 0 && rest[0] == '.' {
			rest = rest[1:]
		}
	}
	return version[0] > 6 || version[0] == 6 && version[1] >= 7
}
