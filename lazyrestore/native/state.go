package native

import (
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// State is all of a process but its memory, as process.bin holds it. It is
// plain data: what the dump saw and the rebuild makes again.
type State struct {
	Arch       string // GOARCH's name of the processor
	PID        int    // in the process's own pid namespace
	Comm       string // name of the leader
	Exe        Mapped // the executable
	Cwd        string
	Umask      uint32
	Persona    uint64 // personality(2)
	Dumpable   uint64
	PDeathSig  uint64
	TimerSlack uint64
	THPDisable bool
	NoNewPrivs bool
	Subreaper  bool
	Membarrier uint64 // membarrier(2) commands that it has registered with
	OOMScore   int64
	Creds      Creds
	MM         MM
	Auxv       []byte
	VDSO       VDSO
	XFeatures  uint64 // XCR0 bits that the threads' states need
	Limits     []Limit
	Actions    []Action // of signals 1, 2, ...
	Timers     [3]Interval
	Pending    [][]byte // siginfo_t of signals sent to the whole process, in order
	Files      []Mapped // that VMAs map
	VMAs       []VMA
	Shared     []SharedObject
	Opens      []Open
	FDs        []FD
	Threads    []Thread // the leader first
	Eager      []Eager  // what eager.raw holds, in its order
	EagerSum   uint32   // CRC-32C of eager.raw
	LazyBytes  uint64   // bytes of memory that the page index holds
	EagerBytes uint64
	Huge       []page.Range // where transparent huge pages were
	Guards     []page.Range // guard regions, see madvise(2)'s MADV_GUARD_INSTALL

	// In sections of process.bin.
	Session     Session
	Modes       TerminalModes
	MemoryMerge uint64 // PR_SET_MEMORY_MERGE
	THPFlags    uint64 // of PR_SET_THP_DISABLE, beside THPDisable
	CoreFilter  uint64 // 1 + coredump_filter of /proc; 0: not known
	PosixTimers []PosixTimer
	Clocks      Clocks

	Locks       []Lock
	TimerFDs    []Timer     // ascending by Open
	FileWatches []FileWatch // of inotify; ascending by Open, then WD
	Displaced   []Displaced // watches of epoll
	Sockets     []Socket    // ascending by Open
	Policies    []RangePolicy
	Locked      []LockedRange
	LockFuture  uint64 // mlockall(MCL_FUTURE): futureLocked, futureOnFault, or 0
}

// Creds are the credentials shared by all threads of a process.
type Creds struct {
	UID, GID   [4]uint32 // real, effective, saved, file system
	Groups     []uint32
	Inh        uint64 // capability sets
	Prm        uint64
	Eff        uint64
	Bnd        uint64
	Amb        uint64
	SecureBits uint64
}

// MM holds the addresses that the kernel keeps for /proc and brk(2): the
// fields of struct prctl_mm_map but auxv and the executable.
type MM struct {
	StartCode, EndCode, StartData, EndData uint64
	StartBrk, Brk, StartStack              uint64
	ArgStart, ArgEnd, EnvStart, EnvEnd     uint64
}

// VDSO is where the kernel's code page was, and which one it was: code in the
// process holds addresses in it, so only the same build can take its place.
type VDSO struct {
	Map  page.Addr // start of the lowest of vvar, vvar_vclock and vdso; 0: the process has none
	Text page.Range
	Size uint64 // of all of them together
	Sum  string // SHA-256 of the text, hex
}

// Limit is one resource limit; its place in the list is its number.
type Limit struct{ Cur, Max uint64 }

// Action is the kernel's struct sigaction.
type Action struct{ Handler, Flags, Restorer, Mask uint64 }

// Interval is a struct itimerval, in its four numbers.
type Interval struct{ IntervalSec, IntervalUsec, ValueSec, ValueUsec uint64 }

// Mapped names a file that the process has mapped or runs, and what tells
// whether it has changed since.
type Mapped struct {
	Path  string
	Size  int64
	MTime int64 // nanoseconds
}

// VMAKind says what is behind a mapping.
type VMAKind uint8

// Kinds of mapping.
const (
	Anonymous     VMAKind = iota // private memory
	PrivateFile                  // a private mapping of a file
	SharedFile                   // a shared mapping of a file that stays where it is
	SharedMemory                 // shared memory whose content is in the image
	PrivateMemory                // a private mapping of such memory: of a file that has no name any more
)

// VMA is one mapping. Mappings that the kernel makes (vDSO, vvar, vsyscall)
// are not in the list.
type VMA struct {
	page.Range
	Kind   VMAKind
	Prot   uint32 // PROT_ bits
	Flags  uint32 // MAP_ bits that matter: GROWSDOWN, NORESERVE, ...
	Advice uint64 // bit i: the advice i of adviceTable is in force
	Name   string // of an anonymous mapping named by PR_SET_VMA
	File   uint32 // PrivateFile, SharedFile: index in Files; SharedMemory: in Shared
	Offset uint64 // in the file or shared object, bytes
	Write  bool   // SharedFile: the mapping may be made writable, so the file is opened for writing
	// Lazy is what a restore registers with userfaultfd: every page of the
	// mapping that the index may hold lies in it, with small gaps between and
	// at the ends. Few ranges, whatever the size of the memory, so that this file and
	// a restore do not grow with it.
	Lazy []page.Range
}

// SharedObject is memory that outlives no process: a shared anonymous
// mapping, a memfd or an unlinked file of a memory file system.
type SharedObject struct {
	Name  string
	Size  uint64
	Image page.Addr // image address of its first byte
	Lazy  bool      // every use of it is a mapping that can be registered
	More  More      // in a section
}

// OpenKind says what an open file description refers to.
type OpenKind uint8

// Kinds of open file description.
const (
	OpenFile     OpenKind = iota // a regular file or directory, by path
	OpenDevice                   // a character device without state, by path
	OpenPipe                     // one end of a pipe of the process's own
	OpenEventFD                  // eventfd(2)
	OpenEpoll                    // epoll(7)
	OpenDeleted                  // a file without a name; its content is in the image
	OpenStdio                    // becomes the restoring command's own descriptor
	OpenNull                     // /dev/null in the place of what cannot be had again
	OpenFIFO                     // one end of a FIFO, or both, by path
	OpenTimerFD                  // timerfd_create(2), see State.TimerFDs
	OpenSignalFD                 // signalfd(2)
	OpenInotify                  // inotify(7), see State.FileWatches
	OpenSocket                   // see State.Sockets
	OpenTerminal                 // the controlling terminal, by whatever name; becomes that of the restore
)

// Open is one open file description; several descriptors may share it.
type Open struct {
	Kind    OpenKind
	Path    string
	Flags   uint32 // O_ bits, with the access mode
	Offset  int64
	File    Mapped // OpenFile: size and time when it was saved
	Mode    uint32 // OpenDeleted: permission bits
	Pipe    uint64 // OpenPipe, OpenFIFO: which pipe; both ends have the same number
	Size    uint64 // OpenPipe, OpenFIFO: capacity in bytes, 0 but for one description of each pipe; OpenDeleted: length
	Data    []byte // with Size: bytes not yet read
	Count   uint64 // OpenEventFD: counter; OpenTimerFD: expirations not read; OpenSignalFD: mask
	Sem     bool   // OpenEventFD: EFD_SEMAPHORE
	Watches []Watch
	Stdio   uint32 // OpenStdio: 0, 1 or 2
	Shared  uint32 // OpenDeleted: 1 + index in Shared, or 0
	Owner   int64  // who gets its signals: struct f_owner_ex, the type above the id
	Signal  uint64 // F_GETSIG
}

// Watch is one descriptor that an epoll instance looks at.
type Watch struct {
	FD     int
	Events uint32
	Data   uint64
}

// FD is one slot of the descriptor table.
type FD struct {
	Num     int
	Open    uint32 // index in Opens
	CloExec bool
}

// Thread is what belongs to one thread.
type Thread struct {
	TID        int // in the process's own pid namespace
	Comm       string
	Regs       proc.Regs
	XState     []byte // the extended registers, as PTRACE_GETREGSET gives them
	SigMask    uint64
	Pending    [][]byte // siginfo_t of signals sent to the thread
	AltStack   AltStack
	RobustList uint64
	RobustLen  uint64
	ClearTID   uint64
	RSeq       RSeq
	Affinity   []uint64 // CPU mask; empty: not set
	Policy     uint64   // scheduling policy
	Priority   uint64   // real-time priority
	Nice       int64

	// In sections of process.bin.
	Sched      Sched
	IOPriority uint64 // ioprio_get(2)'s
	TimerSlack uint64 // nanoseconds; 0: as the first thread's
	MemPolicy  MemPolicy
	Switches   Switches
	Sleep      Sleep
}

// AltStack is a stack_t.
type AltStack struct{ SP, Flags, Size uint64 }

// RSeq is a thread's restartable-sequences registration.
type RSeq struct {
	Addr uint64 // 0: none
	Len  uint32
	Sig  uint32
	CS   uint64 // the critical section it was in
}

// Eager is a run of pages, in eager.raw, that must be there from the start.
// They follow one another in the file in the order of the list.
type Eager struct {
	page.Range
	Shared uint32 // 0: addresses of the process; else 1 + index in Shared, offsets in the object
}
