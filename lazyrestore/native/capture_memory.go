package native

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// Flags of a mapping that are preserved, by MAP_ flags or madvise, or that say
// nothing beyond what is known otherwise.
const knownVMFlags = proc.VMRead | proc.VMWrite | proc.VMExec | proc.VMShared | proc.VMMayRead | proc.VMMayWrite |
	proc.VMMayExec | proc.VMMayShare | proc.VMGrowsDown | proc.VMDenyWrite | proc.VMSeqRead | proc.VMRandRead |
	proc.VMDontCopy | proc.VMAccount | proc.VMNoReserve | proc.VMWipeOnFork | proc.VMDontDump | proc.VMSoftDirty |
	proc.VMHugePage | proc.VMNoHugePage | proc.VMMergeable | proc.VMUffdMissing | proc.VMMaybeGuard |
	proc.VMLocked | proc.VMLockOnFault | proc.VMDroppable | proc.VMHugeTLB | proc.VMDontExpand

// adviceFlags are the flags of the advice table, in its order.
var adviceFlags = [len(advice)]proc.VMFlags{
	proc.VMSeqRead, proc.VMRandRead, proc.VMDontCopy, proc.VMDontDump, proc.VMHugePage, proc.VMNoHugePage, proc.VMMergeable, proc.VMWipeOnFork,
}

// readSmaps reads the list of mappings, of which the kernel gives one piece at a
// time. The pager of an earlier restore may be joining some that it has filled:
// one that is there in parts and as a whole is read again.
func (c *capture) readSmaps() error {
	for range 100 {
		var err error
		if c.smaps, err = proc.ReadSmaps(c.pid); err != nil {
			return err
		}
		last, whole := page.Addr(0), true
		for i := range c.smaps.VMAs {
			v := &c.smaps.VMAs[i]
			whole = whole && v.Start >= last
			last = v.End
		}
		if whole {
			return nil
		}
	}
	return fmt.Errorf("the mappings of process %d do not stand still", c.pid)
}

// mappings reads the address space.
func (c *capture) mappings() error {
	if err := c.readSmaps(); err != nil {
		return err
	}
	c.registered = c.registeredMemory()
	for _, line := range c.smaps.Unknown {
		c.refused.add("/proc/"+strconv.Itoa(c.pid)+"/smaps: "+line, "it is not known to this version", "report it")
	}
	for i := range c.smaps.VMAs {
		if err := c.mapping(&c.smaps.VMAs[i]); err != nil {
			return err
		}
	}
	return c.vdso()
}

func vmaName(v *proc.VMA) string {
	name := v.Path
	if name == "" {
		name = "anonymous"
	}
	return "mapping " + v.Range.String() + " (" + name + ")"
}

func (c *capture) mapping(v *proc.VMA) error {
	out := VMA{Range: v.Range, Prot: uint32(v.Prot)}
	switch v.Kind {
	case proc.VMAVDSO, proc.VMAVVar, proc.VMAVVarClock, proc.VMAVSyscall:
		return nil
	case proc.VMAAnonymous, proc.VMAHeap, proc.VMAStack, proc.VMANamed:
		out.Kind = Anonymous
		if v.Kind == proc.VMANamed {
			out.Name = v.Path
		}
		if v.Shared {
			c.refused.add(vmaName(v), "shared memory without a file is not known", "report it")
		}
	case proc.VMAFile, proc.VMANamedShared:
		if err := c.fileMapping(v, &out); err != nil {
			return err
		}
	default:
		c.refused.add(vmaName(v), "mappings of this type are not preserved", helpCRIU)
	}
	c.vmFlags(v, &out)
	c.locked(v)
	c.st.VMAs = append(c.st.VMAs, out)
	return nil
}

func (c *capture) vmFlags(v *proc.VMA, out *VMA) {
	for _, f := range []struct {
		flag proc.VMFlags
		bit  uint32
	}{{proc.VMGrowsDown, unix.MAP_GROWSDOWN}, {proc.VMNoReserve, unix.MAP_NORESERVE}, {proc.VMDroppable, mapDroppable}} {
		if v.Flags&f.flag != 0 {
			out.Flags |= f.bit
		}
	}
	for i, f := range adviceFlags {
		if v.Flags&f != 0 {
			out.Advice |= 1 << i
		}
	}
	if unknown := v.Flags &^ knownVMFlags; unknown != 0 {
		c.refused.add(vmaName(v), "its flags are not preserved: "+unknown.String(), helpCRIU)
	}
	if len(v.UnknownFlags) > 0 {
		c.refused.add(vmaName(v), "its flags are not known to this version: "+strings.Join(v.UnknownFlags, " "), "report it")
	}
	if v.ProtectionKey != 0 {
		c.refused.add(vmaName(v), "it has a protection key", "")
	}
	c.hugeTLB(v, out)
}

func (c *capture) fileMapping(v *proc.VMA, out *VMA) error {
	out.Offset = v.Offset
	link := mapFile(c.pid, v.Range)
	var st unix.Stat_t
	if err := unix.Stat(link, &st); err != nil {
		return hidden(fmt.Errorf("stat %s: %w", link, err))
	}
	kind, err := c.fileSystem(st.Dev, link)
	if err != nil {
		return hidden(err)
	}
	if name := v.Path + deletedSuffix; v.Deleted && !removed(name, &st) {
		v.Path, v.Deleted = name, false // that is its name
	}
	gone := st.Nlink == 0 || v.Deleted
	switch {
	case strings.HasPrefix(v.Path, "/SYSV"):
		c.refused.add(vmaName(v), "System V shared memory is not preserved", helpCRIU)
	case strings.HasPrefix(v.Path, "/[aio]"):
		c.refused.add(vmaName(v), "contexts of asynchronous I/O are not preserved", helpCRIU)
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		c.refused.add(vmaName(v), "mappings of devices are not preserved", helpCRIU)
	case kind == unix.SECRETMEM_MAGIC:
		c.refused.add(vmaName(v), unreadable(kind), "")
	case v.Flags&proc.VMHugeTLB != 0:
		out.Kind, out.Offset = Anonymous, 0
		if v.Shared || !strings.HasPrefix(v.Path, "/anon_hugepage") {
			c.refused.add(vmaName(v), "shared huge pages, and files of hugetlbfs, are not preserved", helpCRIU)
		}
	case gone && v.Shared:
		out.Kind = SharedMemory
		if st.Nlink > 0 && v.Flags&proc.VMMayWrite != 0 {
			c.refused.add(vmaName(v), "the file has lost this name, and has another: what is written to it would be two files' after a restore", "")
		}
		out.File = c.object(objectID{st.Dev, st.Ino}, v.Path, link, &st).index
	case gone:
		out.Kind = PrivateMemory
		o := c.object(objectID{st.Dev, st.Ino}, v.Path, link, &st)
		o.pinned = true
		out.File = o.index
	default:
		out.Kind = PrivateFile
		if v.Shared {
			out.Kind, out.Write = SharedFile, v.Flags&proc.VMMayWrite != 0
		}
		if err := c.memoryFile(v.Path, link, &st, out.Write, v.Shared); err != nil {
			return err
		}
		if out.File, err = c.file(fileID{v.Path, objectID{st.Dev, st.Ino}}, link); err == nil && out.Write {
			err = c.settle(link, &st, out.File)
		}
		return err
	}
	return nil
}

// settle has a file that is written through a mapping put on its disk, so that
// it is there as the image knows it, and does not change its times later.
func (c *capture) settle(link string, st *unix.Stat_t, file uint32) error {
	if inMemory, err := c.inMemory(st.Dev, link); inMemory || err != nil {
		return err
	}
	fd, err := unix.Open(link, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", link, err)
	}
	defer unix.Close(fd)
	if err := unix.Fdatasync(fd); err != nil {
		return fmt.Errorf("sync %s: %w", c.st.Files[file].Path, err)
	}
	if err := unix.Fstat(fd, st); err != nil {
		return fmt.Errorf("stat %s: %w", link, err)
	}
	c.st.Files[file].MTime = st.Mtim.Nano()
	return nil
}

// file gives the index of a mapped file.
func (c *capture) file(id fileID, link string) (uint32, error) {
	if i, ok := c.files[id]; ok {
		return i, nil
	}
	m, err := c.mappedFile(id.path, link, "the mapped file")
	if err != nil {
		return 0, err
	}
	i := uint32(len(c.st.Files))
	c.files[id] = i
	c.st.Files = append(c.st.Files, m)
	return i, nil
}

// vdso notes where the kernel's own pages are: the vvar pages directly below
// the vDSO, as arch_prctl(ARCH_MAP_VDSO_64) will make them again.
func (c *capture) vdso() error {
	var d VDSO
	for i := range c.smaps.VMAs {
		switch v := &c.smaps.VMAs[i]; v.Kind {
		case proc.VMAVVar, proc.VMAVVarClock:
			if d.Map == 0 {
				d.Map = v.Start
			}
		case proc.VMAVDSO:
			if d.Map == 0 {
				d.Map = v.Start
			}
			d.Text, d.Size = v.Range, uint64(v.End-d.Map)
		default:
		}
	}
	if d.Text.Empty() {
		c.refused.add("the vDSO", "the process has unmapped it", "")
		return nil
	}
	text := make([]byte, d.Text.Len())
	if _, err := proc.ReadMemory(c.pid, uint64(d.Text.Start), text); err != nil {
		return fmt.Errorf("read the vDSO: %w", err)
	}
	own, err := ownVDSO(len(text))
	if err != nil || !sameVDSO(own, text) {
		c.refused.add("the vDSO", "it is not the one of the kernel that runs", "")
	}
	d.Sum = vdsoSum(own)
	c.st.VDSO = d
	c.behindVDSO = page.Range{Start: d.Text.Start + page.Addr(len(bytes.TrimRight(own, "\x00"))), End: d.Text.End}
	return nil
}

// sameVDSO compares a process's vDSO with this one's, up to its end: behind that may
// be what a checkpoint that was killed has left (proc's detours). No restored process has it.
func sameVDSO(own, theirs []byte) bool {
	return bytes.HasPrefix(theirs, bytes.TrimRight(own, "\x00"))
}
