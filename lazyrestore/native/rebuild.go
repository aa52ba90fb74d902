package native

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
	"github.com/lazyrestore/lazyrestore/lazyrestore/thread"
	"github.com/lazyrestore/lazyrestore/lazyrestore/trace"
	"github.com/lazyrestore/lazyrestore/uffd"
)

// ChangedFiles says what a rebuild does with a file that is not as it was.
type ChangedFiles uint8

// What to do with a changed file.
const (
	ChangedRefuse ChangedFiles = iota // refuse the restore
	ChangedWarn                       // open it as it is, and say so
)

// Stdio says what becomes of descriptors 0 to 2.
type Stdio uint8

// What to do with descriptors 0 to 2.
const (
	StdioAuto    Stdio = iota // files as saved; terminals and outside pipes become the caller's own
	StdioSaved                // as saved; what cannot be had again is /dev/null, and so is the terminal, under any number
	StdioInherit              // the caller's own
)

// RebuildOptions are the wishes of a Rebuild. The zero value works for a
// process without eager pages.
type RebuildOptions struct {
	Eager        *os.File // eager.raw; the caller closes it after Rebuild
	ChangedFiles ChangedFiles
	Stdio        Stdio
	PIDNamespace bool // the process gets a pid namespace of its own, in which it has its old id
	Terminal     bool // this program's controlling terminal becomes that of a process that had one, in our session
	Logger       *slog.Logger

	// Meanwhile, if set, is called while the process builds itself, once all of that
	// is planned, on the thread that has to wait for it, and before Serve. An error ends the rebuild.
	Meanwhile func() error

	// Serve, if set, is called from a goroutine of its own once the userfaultfd
	// is there, while the process goes on building itself: p has its UFFD, PIDFD
	// and Mappings by then. An error ends the rebuild. If the process is killed
	// later, abandon is called before its descriptors are closed: it returns when
	// nobody uses them any more.
	Serve func(p *Process) (abandon func(), err error)

	// TimerSlack, if not 0, is what the calling thread takes: the process has it
	// from there as its default, which is set by nothing else.
	TimerSlack uint64

	// Trace, if set, records what the rebuild does, on its row 0 and on rows of
	// its own. The process then reads the clock after each of its system calls.
	Trace *trace.Recorder
}

// A Process is one that has been rebuilt and stands before its first
// instruction. Run lets it go; Kill ends it. Whoever calls neither loses it
// when the calling process ends. Rebuild, and one of Run and Kill, are called
// by the same goroutine, which is locked to its thread between them.
type Process struct {
	PID      int                // as we see it, see RebuildOptions.PIDNamespace
	PIDFD    int                // belongs to the caller
	Space    *proc.PIDNamespace // whose guest it is; belongs to the caller; nil: none of its own
	UFFD     *uffd.FD           // belongs to the caller; nil where no memory is lazy
	Mappings []page.Mapping     // what is registered with it
	Warnings []string

	tracer  *proc.Tracer
	later   *later   // threads that Run gives their registers, or nil
	program []byte   // its tables, unmapped when nobody waits for that
	made    []string // files that were made for it
	record  func()   // records what the process has done of its program; nil: not begun

	handed  chan struct{} // closed once the userfaultfd has been handed over, or not; nil: there is none
	handErr error         // why not
	abandon func()        // of RebuildOptions.Serve
}

// builder plans the tables of one rebuild.
type builder struct {
	st           *State
	re           *reopener
	prog         *program
	pid          int   // of the process, as we see it; where that was started
	tids         []int // of its threads, likewise
	features     uffd.Features
	eagerFD      int
	sharedFDs    []int
	socket       int // the end of a socket pair that the process sends from
	creds        Creds
	limits       []Limit
	own          ownScheduling
	ownOOM       int64                  // what the new process has from us
	ownFilter    uint64                 // 1 + coredump_filter
	small        bool                   // see mapsSmall
	fileFD       uint64                 // as which the process opens files to map
	unregistered []VMA                  // until all is mapped
	eager        page.Set               // pages of the process that are eager
	looks        []look                 // whether others are there
	found        page.Set               // pages that looks may find
	vdso         func() ([]byte, error) // the kernel's, as long as that of the state

	trace        *trace.Recorder
	main         *table
	threadTables []*table
	usual        int        // how many steps the last of them has that was planned
	room         []step     // for those of the next ones
	beside       []eagerRun // that are written from here
	lateSignals  []lateSignal

	begin    func() error // starts the process, when it has something to do
	beginErr error        // why it does not run
}

func newBuilder(st *State, re *reopener) *builder {
	return &builder{
		st: st, re: re, sharedFDs: re.shared, features: Features, trace: re.opts.Trace,
		vdso: sync.OnceValues(func() ([]byte, error) { return ownVDSO(int(st.VDSO.Text.Len())) }),
	}
}

// Features are what the pager needs to know of all that changes the memory
// of a lazy process.
const Features = uffd.FeatureEventFork | uffd.FeatureEventRemap | uffd.FeatureEventRemove |
	uffd.FeatureEventUnmap | uffd.FeatureThreadID

// Rebuild makes the process of st anew, with its memory missing, and leaves it
// before its first instruction. Errors: *RefusedError where this place cannot
// take the process; *StepError where the kernel refused a step; a
// *image.DamagedError where eager.raw is not what it was. Whatever the error,
// nothing of the process is left.
func Rebuild(ctx context.Context, st *State, opts RebuildOptions) (*Process, error) {
	// The new process inherits descriptors that nobody else may whom this
	// process starts meanwhile.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	applyStdio(st, opts.Stdio)
	re := &reopener{st: st, opts: &opts, places: placesBeside(st)}
	defer re.close()
	space := re.spaceBeside()
	p := &Process{PIDFD: -1}
	reopened := opts.Trace.Begin(0, "open files and shared objects")
	if err := re.all(ctx); err != nil {
		re.notBuilt(space)
		return nil, err
	}
	p.made = re.made
	reopened()
	b := newBuilder(st, re)
	pair, err := b.open(opts.Eager)
	if err != nil {
		re.notBuilt(space)
		return nil, err
	}
	defer func() {
		_ = p.wait()
		unix.Close(pair)
	}()
	progFD, err := b.mapProgram()
	if err != nil {
		re.notBuilt(space)
		return nil, err
	}
	if p.Space, err = space(); err != nil {
		re.unmake()
		return nil, err
	}

	p.tracer, p.program = proc.TracerHere(), b.prog.buf
	// Between two waits for the process it needs microseconds, and everything
	// waits for it.
	defer thread.Hurry()()
	err = b.own.take(opts.TimerSlack)
	if err == nil {
		err = b.run(ctx, p, progFD, pair)
	}
	if err != nil {
		// That the process has ended says the same, but for a process that was
		// started in the midst, and has the other end too.
		_ = unix.Shutdown(pair, unix.SHUT_RDWR)
		p.Kill()
		return nil, err
	}
	p.Warnings = re.warnings
	for _, t := range append([]*table{b.main}, b.threadTables...) {
		p.Warnings = append(p.Warnings, b.prog.warnings(t)...)
	}
	return p, nil
}

// CheckRebuild looks at all that a Rebuild of st may be refused for, and makes
// no process. It gives the warnings that the Rebuild would.
func CheckRebuild(ctx context.Context, st *State, opts RebuildOptions) (warnings []string, err error) {
	applyStdio(st, opts.Stdio)
	re := &reopener{st: st, opts: &opts, places: placesBeside(st), check: true}
	defer re.close()
	defer re.unmake()
	if err := unix.Kill(st.PID, 0); !opts.PIDNamespace && !errors.Is(err, unix.ESRCH) {
		re.refused.taken(st.PID)
	}
	if err := re.all(ctx); err != nil {
		return nil, err
	}
	return re.warnings, newBuilder(st, re).inspect()
}

// run has the process build itself.
func (b *builder) run(ctx context.Context, p *Process, progFD, pair int) error {
	err := b.build(ctx, p, progFD, pair)
	if err == nil {
		b.writeProc()
	}
	return cmp.Or(context.Cause(ctx), err) // an end that we have made says nothing
}

// build has the process build itself up to its registers.
func (b *builder) build(ctx context.Context, p *Process, progFD, pair int) error {
	stop := func() {}
	defer func() { stop() }()
	mayServe := b.handOverBeside(p, pair)
	defer mayServe(errNotBuilt)
	planned := b.trace.Begin(0, "plan the program")
	err := b.plan(func() error {
		planned()
		began := b.trace.Now()
		err := b.start(p, progFD)
		b.trace.Span(0, "clone, exec the stub, seize", began, b.trace.Now())
		p.record = func() { b.traceProgram(began) } // later: everything waits for what comes next
		planned = b.trace.Begin(0, "plan the rest")
		if err != nil {
			return err
		}
		stop = p.endWith(ctx)
		if b.re.opts.Meanwhile == nil {
			mayServe(nil)
		}
		return b.prog.open(gateOffset)
	})
	planned()
	b.re.close()
	// While the process maps its memory, which takes it longer. A state that is damaged may
	// have it wait for ever, say for a page of its own that nobody brings: so all is looked
	// at before anybody waits for it.
	looked := b.trace.Begin(0, "compare files and eager pages")
	if ierr := b.inspect(); ierr != nil {
		return ierr // says more than the call that failed for the same reason
	}
	looked()
	if err != nil {
		return err
	}
	if do := b.re.opts.Meanwhile; do != nil {
		if err := do(); err != nil {
			return err
		}
	}
	mayServe(nil)
	waited := b.trace.Begin(0, "wait for the process to build itself")
	if err := b.writeBeside(p); err != nil {
		return err
	}
	if err := b.built(p); err != nil {
		return err
	}
	waited()
	registers := b.trace.Begin(0, "seize threads, set registers")
	if err := b.setRegisters(ctx, p); err != nil {
		return err
	}
	registers()
	defer b.trace.Begin(0, "wait for the pager")()
	return p.wait()
}

// endWith ends the process with ctx, until stop is called. A file system that does
// not answer holds up the process, not its end.
func (p *Process) endWith(ctx context.Context) (stop func()) {
	killed := make(chan struct{})
	end := context.AfterFunc(ctx, func() {
		defer close(killed)
		_ = unix.PidfdSendSignal(p.PIDFD, unix.SIGKILL, nil, 0)
	})
	return func() {
		if !end() {
			<-killed // the descriptor is about to be closed
		}
	}
}

// inspect looks whether all is as it was: the kernel's vDSO, the files that
// the process maps, the bytes that it reads.
func (b *builder) inspect() error {
	b.readProc()
	if err := checkMachine(b.st, b.vdso); err != nil {
		return err
	}
	b.re.mappedFiles()
	if err := b.re.refused.err(); err != nil {
		return err
	}
	return checkEager(b.re.opts.Eager, b.st.EagerBytes, b.st.EagerSum)
}

// open makes the descriptors that the rebuild itself needs; pair is our end of
// the socket over which the userfaultfd comes.
func (b *builder) open(eager *os.File) (pair int, err error) {
	if b.eagerFD, err = b.re.eagerFile(eager); err != nil {
		return -1, err
	}
	sp, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("make a socket pair: %w", err)
	}
	if b.socket, err = b.re.raise(sp[1]); err != nil {
		unix.Close(sp[0])
		return -1, err
	}
	if b.creds, err = ownCredentials(); err != nil {
		unix.Close(sp[0])
		return -1, err
	}
	b.limits = ownLimits(len(b.st.Limits))
	b.own.inherits()
	return sp[0], nil
}

// start brings the stub to life with the old process id, up to the gate.
func (b *builder) start(p *Process, progFD int) error {
	at := b.prog.base - 1<<20
	img, err := stubImage(at, b.prog.base, uint64(len(b.prog.buf)), progFD)
	if err != nil {
		return err
	}
	stub, err := proc.MemFDExec("lazyrestore-stub", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	defer func() { unix.Close(stub) }()
	if stub == 0 { // which the child may need for something else
		if stub, err = unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 3); err != nil {
			return fmt.Errorf("move the stub: %w", err)
		}
		unix.Close(0)
	}
	if _, err := unix.Write(stub, img); err != nil {
		return fmt.Errorf("write the stub: %w", err)
	}
	opts := proc.StartOptions{PID: b.st.PID, Exec: stub, Namespace: p.Space}
	opts.NewSession, opts.Before = b.session()
	opts.Stack, opts.Layout = b.layout()
	if opts.TimeOffsets, err = b.timeOffsets(); err != nil {
		return err
	}
	if err := p.tracer.Start(opts); err != nil {
		return b.notStarted(err)
	}
	p.PID, p.PIDFD = p.tracer.PID(), p.tracer.PIDFD()
	b.pid = p.PID
	if opts.TimeOffsets != "" {
		if err := b.inItsTime(b.pid); err != nil {
			return err
		}
	}
	return nil
}

// notStarted explains why the stub could not be started.
func (b *builder) notStarted(err error) error {
	var taken *proc.PIDTakenError
	var call *proc.CallError
	switch {
	case errors.As(err, &taken):
		var r reasons
		r.taken(b.st.PID)
		return r.err()
	case errors.As(err, &call) && call.Call.NR == unix.SYS_UNSHARE && call.Call.Args[0] == unix.CLONE_NEWTIME:
		return b.backwards(call.Errno)
	case errors.As(err, &call) && call.Call.NR == unix.SYS_UNSHARE:
		return &SpaceError{fmt.Errorf("make a mount namespace: %w", call.Errno)}
	case errors.As(err, &call) && call.Call.NR == unix.SYS_MOUNT:
		return &SpaceError{fmt.Errorf("mount its /proc: %w", call.Errno)}
	}
	return fmt.Errorf("start process %d: %w", b.st.PID, err)
}

// checkEager compares eager.raw with the checksum that the state has of it.
func checkEager(f *os.File, size uint64, want uint32) error {
	if size == 0 {
		return nil
	}
	if f == nil {
		return damagedEager(errMissing)
	}
	h := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	n, err := io.Copy(h, io.NewSectionReader(f, 0, int64(size)))
	if err != nil {
		return fmt.Errorf("read %s: %w", image.EagerObject, err)
	}
	if uint64(n) != size || h.Sum32() != want {
		return damagedEager(errors.New("checksum mismatch"))
	}
	return nil
}

var errMissing = errors.New("it is missing")

func damagedEager(why error) error {
	return &image.DamagedError{Object: image.EagerObject, Frame: image.NoFrame, Err: why}
}
