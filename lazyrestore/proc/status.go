package proc

import (
	"bytes"
	"errors"
	"fmt"
)

// Status is what /proc/PID/status says about a process or a thread.
type Status struct {
	Name           string // comm, escapes undone
	Umask          uint32
	HasUmask       bool // a task without a file system (a zombie) has no umask
	State          byte // R running, S sleeping, D disk sleep, T stopped, t tracing stop, Z zombie, X dead, I idle, P parked
	Tgid           int
	Pid            int
	PPid           int
	TracerPid      int
	Uid, Gid       [4]uint32 // real, effective, saved, file system
	Groups         []uint32
	NStgid         []int // from our pid namespace inwards
	NSpid          []int
	NSpgid         []int
	NSsid          []int
	Kthread        bool // a thread of the kernel (Linux 6.4)
	TellsKthread   bool // the kernel says Kthread
	HasMM          bool // it has memory: neither a zombie nor a thread of the kernel
	Threads        int
	CapInh, CapPrm uint64
	CapEff, CapBnd uint64
	CapAmb         uint64
	NoNewPrivs     bool
	Seccomp        int // 0 none, 1 strict, 2 filter
	SeccompFilters int
	THPEnabled     bool // false: prctl(PR_SET_THP_DISABLE)
	CoreDumping    bool
	UntagMask      uint64 // 0: not said; ^0: no address bits are ignored
	SigPnd, ShdPnd uint64 // pending: of the thread, of the process
	SigQueueFull   bool   // no more signals can be queued for its user; some may be pending that are not
	SigBlk         uint64
	SigIgn, SigCgt uint64
	VmRSS          uint64 // bytes
	VmSwap         uint64 // bytes
	VmLck, VmPin   uint64 // bytes
	VmPTE          uint64 // bytes of page tables
	HugetlbPages   uint64 // bytes
	CPUsAllowed    string // list, "0-3,8"
	MemsAllowed    string // list of NUMA nodes

	// Speculation holds what prctl(PR_SET_SPECULATION_CTRL) may have set, in
	// the kernel's words: store bypass, indirect branch.
	Speculation [2]string

	// ThreadFeatures and ThreadFeaturesLocked are the words of
	// x86_Thread_features: "shstk", "wrss".
	ThreadFeatures       string
	ThreadFeaturesLocked string

	Unknown []string // lines that are not known
}

// ParseStatus reads /proc/PID/status.
func ParseStatus(b []byte) (Status, error) {
	s := Status{THPEnabled: true}
	p := statusParser{number{what: "status"}, &s}
	if len(b) == 0 {
		return s, errors.New("status: empty")
	}
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		key, value, ok := cutKey(line)
		if !ok || !(p.identity(string(key), value) || p.signals(string(key), value) ||
			p.memory(string(key), value) || p.security(string(key), value)) {
			s.Unknown = append(s.Unknown, string(line))
		}
	}
	if p.err == nil && s.Pid == 0 {
		p.err = errors.New("status: no line Pid")
	}
	return s, p.err
}

type statusParser struct {
	number
	*Status
}

func (p *statusParser) identity(key string, v []byte) bool {
	switch key {
	case "Name":
		p.Name = unescapeComm(v)
	case "Umask":
		p.Umask, p.HasUmask = p.uint32(key, v, 8), true
	case "State":
		if len(v) == 0 {
			p.fail(key, v)
			return true
		}
		p.State = v[0]
	case "Tgid":
		p.Tgid = p.int(key, v)
	case "Pid":
		p.Pid = p.int(key, v)
	case "PPid":
		p.PPid = p.int(key, v)
	case "TracerPid":
		p.TracerPid = p.int(key, v)
	case "Uid":
		p.Uid = p.ids(key, v)
	case "Gid":
		p.Gid = p.ids(key, v)
	case "Groups":
		p.Groups = p.list(key, v)
	case "NStgid":
		p.NStgid = p.ints(key, v)
	case "NSpid":
		p.NSpid = p.ints(key, v)
	case "NSpgid":
		p.NSpgid = p.ints(key, v)
	case "NSsid":
		p.NSsid = p.ints(key, v)
	case "Kthread":
		p.Kthread, p.TellsKthread = p.flag(key, v), true
	case "Threads":
		p.Threads = p.int(key, v)
	case "Ngid", "FDSize", "voluntary_ctxt_switches", "nonvoluntary_ctxt_switches":
		// Statistics.
	default:
		return false
	}
	return true
}

func (p *statusParser) signals(key string, v []byte) bool {
	switch key {
	case "SigPnd":
		p.SigPnd = p.uint(key, v, 16)
	case "ShdPnd":
		p.ShdPnd = p.uint(key, v, 16)
	case "SigBlk":
		p.SigBlk = p.uint(key, v, 16)
	case "SigIgn":
		p.SigIgn = p.uint(key, v, 16)
	case "SigCgt":
		p.SigCgt = p.uint(key, v, 16)
	case "SigQ":
		queued, limit, _ := bytes.Cut(v, []byte("/"))
		p.SigQueueFull = p.uint(key, queued, 10) >= p.uint(key, limit, 10)
	default:
		return false
	}
	return true
}

func (p *statusParser) memory(key string, v []byte) bool {
	switch key {
	case "VmRSS":
		p.VmRSS, p.HasMM = p.kB(key, v), true
	case "VmSwap":
		p.VmSwap = p.kB(key, v)
	case "VmLck":
		p.VmLck = p.kB(key, v)
	case "VmPin":
		p.VmPin = p.kB(key, v)
	case "VmPTE":
		p.VmPTE = p.kB(key, v)
	case "HugetlbPages":
		p.HugetlbPages = p.kB(key, v)
	case "THP_enabled":
		p.THPEnabled = p.flag(key, v)
	case "CoreDumping":
		p.CoreDumping = p.flag(key, v)
	case "untag_mask":
		p.UntagMask = p.uint(key, bytes.TrimPrefix(v, []byte("0x")), 16)
	case "Cpus_allowed_list":
		p.CPUsAllowed = string(v)
	case "Mems_allowed_list":
		p.MemsAllowed = string(v)
	case "VmPeak", "VmSize", "VmHWM", "RssAnon", "RssFile", "RssShmem", "VmData", "VmStk",
		"VmExe", "VmLib", "VmPMD", "Cpus_allowed", "Mems_allowed":
		// Statistics, and the same again as a mask.
	default:
		return false
	}
	return true
}

func (p *statusParser) security(key string, v []byte) bool {
	switch key {
	case "CapInh":
		p.CapInh = p.uint(key, v, 16)
	case "CapPrm":
		p.CapPrm = p.uint(key, v, 16)
	case "CapEff":
		p.CapEff = p.uint(key, v, 16)
	case "CapBnd":
		p.CapBnd = p.uint(key, v, 16)
	case "CapAmb":
		p.CapAmb = p.uint(key, v, 16)
	case "NoNewPrivs":
		p.NoNewPrivs = p.flag(key, v)
	case "Seccomp":
		p.Seccomp = p.int(key, v)
	case "Seccomp_filters":
		p.SeccompFilters = p.int(key, v)
	case "Speculation_Store_Bypass":
		p.Speculation[0] = string(v)
	case "SpeculationIndirectBranch":
		p.Speculation[1] = string(v)
	case "x86_Thread_features":
		p.ThreadFeatures = string(v)
	case "x86_Thread_features_locked":
		p.ThreadFeaturesLocked = string(v)
	default:
		return false
	}
	return true
}

func (p *statusParser) flag(key string, v []byte) bool { return p.uint(key, v, 10) != 0 }

func (p *statusParser) list(key string, v []byte) []uint32 {
	var list []uint32
	for {
		f, rest := cutField(v)
		if len(f) == 0 {
			return list
		}
		list, v = append(list, p.uint32(key, f, 10)), rest
	}
}

func (p *statusParser) ids(key string, v []byte) (ids [4]uint32) {
	list := p.list(key, v)
	if len(list) != 4 {
		if p.err == nil {
			p.err = fmt.Errorf("status: %s: %d ids, want 4", key, len(list))
		}
		return ids
	}
	return [4]uint32(list)
}

// unescapeComm undoes what the kernel does to a comm in status: \n and \\.
func unescapeComm(b []byte) string {
	if bytes.IndexByte(b, '\\') < 0 {
		return string(b)
	}
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		c := b[i]
		if c == '\\' && i+1 < len(b) {
			switch b[i+1] {
			case 'n':
				c, i = '\n', i+1
			case '\\':
				i++
			}
		}
		out = append(out, c)
	}
	return string(out)
}
