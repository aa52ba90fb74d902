package proc

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// Prot is what a mapping allows, in the bits of mmap(2)'s PROT_ constants.
type Prot uint32

// Protections of a mapping.
const (
	ProtRead  Prot = 1
	ProtWrite Prot = 2
	ProtExec  Prot = 4
)

// String is p as /proc/PID/maps writes it, without the letter for sharing.
func (p Prot) String() string {
	s := []byte("---")
	for i, c := range []byte("rwx") {
		if p&(1<<i) != 0 {
			s[i] = c
		}
	}
	return string(s)
}

// VMAKind says what the name of a mapping tells about it.
type VMAKind uint8

// Kinds of mapping.
const (
	VMAAnonymous   VMAKind = iota // no name
	VMAFile                       // Path is a path in some mount namespace
	VMAHeap                       // [heap]: the brk area
	VMAStack                      // [stack]: the main thread's first stack
	VMAVDSO                       // [vdso]
	VMAVVar                       // [vvar]
	VMAVVarClock                  // [vvar_vclock], Linux 6.13
	VMAVSyscall                   // [vsyscall]: the same in every process
	VMANamed                      // [anon:Path]: private, named by PR_SET_VMA_ANON_NAME
	VMANamedShared                // [anon_shmem:Path]: shared, named likewise
	VMAOther                      // Path is a name that is none of these
)

// A VMA is one mapping of a process.
type VMA struct {
	page.Range
	Prot     Prot
	Shared   bool
	Deleted  bool // the file had no name any more (or its name ends in " (deleted)": compare inodes)
	Kind     VMAKind
	Offset   uint64 // in the file, bytes
	DevMajor uint32
	DevMinor uint32
	Inode    uint64
	Path     string // of a file, or the name within the brackets

	// From smaps only.
	Flags         VMFlags
	UnknownFlags  []string // words of flags that we do not know
	PageSize      uint64   // the kernel's, in bytes
	Rss           uint64   // bytes
	Anonymous     uint64   // bytes
	AnonHuge      uint64   // bytes in transparent huge pages
	Swap          uint64   // bytes
	Locked        uint64   // bytes
	HugeShared    uint64   // hugetlb, bytes
	HugePrivate   uint64   // hugetlb, bytes
	ProtectionKey uint32
}

// Smaps is all of /proc/PID/smaps.
type Smaps struct {
	VMAs    []VMA
	Unknown []string // keys of lines that are not known, each once
}

// ParseMaps reads the lines of /proc/PID/maps.
func ParseMaps(b []byte) ([]VMA, error) {
	p := smapsParser{vmas: make([]VMA, 0, len(b)/80+1)}
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		if !p.header(line) {
			return nil, fmt.Errorf("maps: line %q: not a mapping", line)
		}
	}
	return p.vmas, nil
}

// ParseSmaps reads /proc/PID/smaps in one pass.
func ParseSmaps(b []byte) (Smaps, error) {
	p := smapsParser{vmas: make([]VMA, 0, len(b)/600+1), n: number{what: "smaps"}}
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		if err := p.line(line); err != nil {
			return Smaps{}, err
		}
	}
	if p.n.err != nil {
		return Smaps{}, p.n.err
	}
	return Smaps{p.vmas, p.unknown}, nil
}

type smapsParser struct {
	vmas    []VMA
	unknown []string
	n       number
}

func (p *smapsParser) line(line []byte) error {
	// Keys begin with capital letters, addresses are small hex digits.
	if len(line) > 0 && (line[0] <= '9' || line[0] >= 'a') && p.header(line) {
		return nil
	}
	key, value, ok := cutKey(line)
	if !ok {
		return fmt.Errorf("smaps: line %q: neither a mapping nor a field", line)
	}
	if len(p.vmas) == 0 {
		return fmt.Errorf("smaps: line %q before the first mapping", line)
	}
	return p.field(&p.vmas[len(p.vmas)-1], key, value)
}

func (p *smapsParser) field(v *VMA, key, value []byte) error {
	switch string(key) {
	case "Rss":
		v.Rss = p.n.kB("Rss", value)
	case "KernelPageSize":
		v.PageSize = p.n.kB("KernelPageSize", value)
	case "Anonymous":
		v.Anonymous = p.n.kB("Anonymous", value)
	case "AnonHugePages":
		v.AnonHuge = p.n.kB("AnonHugePages", value)
	case "Swap":
		v.Swap = p.n.kB("Swap", value)
	case "Locked":
		v.Locked = p.n.kB("Locked", value)
	case "Shared_Hugetlb":
		v.HugeShared = p.n.kB("Shared_Hugetlb", value)
	case "Private_Hugetlb":
		v.HugePrivate = p.n.kB("Private_Hugetlb", value)
	case "ProtectionKey":
		v.ProtectionKey = p.n.uint32("ProtectionKey", value, 10)
	case "VmFlags":
		v.Flags, v.UnknownFlags = parseVMFlags(value)
	case "Size", "MMUPageSize", "Pss", "Pss_Dirty", "Pss_Anon", "Pss_File", "Pss_Shmem",
		"Shared_Clean", "Shared_Dirty", "Private_Clean", "Private_Dirty", "Referenced",
		"KSM", "LazyFree", "ShmemPmdMapped", "FilePmdMapped", "SwapPss", "THPeligible":
		// Statistics.
	default:
		if !slices.Contains(p.unknown, string(key)) {
			p.unknown = append(p.unknown, string(key))
		}
	}
	return nil
}

// header appends the mapping that a line of maps describes; it reports false,
// and appends nothing, where the line is none:
//
//	55d0e3a00000-55d0e3a21000 rw-p 00000000 fe:00 247026    /usr/bin/cat
func (p *smapsParser) header(line []byte) bool {
	var v VMA
	span, rest := cutField(line)
	perms, rest := cutField(rest)
	offset, rest := cutField(rest)
	dev, rest := cutField(rest)
	inode, name := cutField(rest)

	dash, colon := bytes.IndexByte(span, '-'), bytes.IndexByte(dev, ':')
	if dash < 0 || colon < 0 || len(perms) != 4 {
		return false
	}
	start, ok1 := parseUint(span[:dash], 16)
	end, ok2 := parseUint(span[dash+1:], 16)
	off, ok3 := parseUint(offset, 16)
	major, ok4 := parseUint(dev[:colon], 16)
	minor, ok5 := parseUint(dev[colon+1:], 16)
	ino, ok6 := parseUint(inode, 10)
	if !ok1 || !ok2 || !ok3 || !ok4 || !ok5 || !ok6 || major|minor > 1<<32-1 || start >= end {
		return false
	}
	v.Range = page.Range{Start: page.Addr(start), End: page.Addr(end)}
	v.Offset, v.DevMajor, v.DevMinor, v.Inode = off, uint32(major), uint32(minor), ino
	if !v.perms(perms) {
		return false
	}
	if err := p.name(&v, name); err != nil {
		return false
	}
	p.vmas = append(p.vmas, v)
	return true
}

// perms reads "rwxp" with dashes for what is not allowed, "s" for shared.
func (v *VMA) perms(b []byte) bool {
	for i, c := range []byte("rwx") {
		switch b[i] {
		case c:
			v.Prot |= 1 << i
		case '-':
		default:
			return false
		}
	}
	v.Shared = b[3] == 's'
	return v.Shared || b[3] == 'p'
}

var errNoBlank = errors.New("no blank before the name")

// name reads what stands after the inode. A name keeps its blanks: only the
// padding before it is taken away, which the kernel makes at least one blank.
func (p *smapsParser) name(v *VMA, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if b[0] != ' ' {
		return errNoBlank
	}
	for len(b) > 0 && b[0] == ' ' {
		b = b[1:]
	}
	if len(b) == 0 {
		return nil
	}
	if b[0] == '[' && v.bracketed(b) {
		return nil
	}
	v.Kind = VMAOther
	if b[0] == '/' {
		v.Kind = VMAFile
		b, v.Deleted = bytes.CutSuffix(b, []byte(" (deleted)"))
	}
	// Neighbours are mostly parts of one file: let them share the string.
	if n := len(p.vmas); n > 0 && p.vmas[n-1].Path == string(b) {
		v.Path = p.vmas[n-1].Path
		return nil
	}
	v.Path = unescape(b)
	return nil
}

func (v *VMA) bracketed(b []byte) bool {
	switch string(b) {
	case "[heap]":
		v.Kind = VMAHeap
	case "[stack]":
		v.Kind = VMAStack
	case "[vdso]":
		v.Kind = VMAVDSO
	case "[vvar]":
		v.Kind = VMAVVar
	case "[vvar_vclock]":
		v.Kind = VMAVVarClock
	case "[vsyscall]":
		v.Kind = VMAVSyscall
	default:
		name, ok := bytes.CutSuffix(b, []byte("]"))
		if !ok {
			return false
		}
		if n, ok := bytes.CutPrefix(name, []byte("[anon:")); ok {
			v.Kind, v.Path = VMANamed, string(n)
		} else if n, ok := bytes.CutPrefix(name, []byte("[anon_shmem:")); ok {
			v.Kind, v.Path = VMANamedShared, string(n)
		} else {
			return false
		}
	}
	return true
}

// unescape turns \012 into the newline that the kernel wrote so. It escapes
// nothing else in these files, a backslash not either: a file with the four
// characters in its name cannot be told from one with a newline, and whoever
// opens it compares device and inode.
func unescape(b []byte) string {
	return string(bytes.ReplaceAll(b, []byte(`\012`), []byte("\n")))
}
