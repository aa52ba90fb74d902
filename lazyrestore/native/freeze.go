package native

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// Frozen is a process all of whose threads stand still. Release lets it run
// on, whatever happened before; if the calling process dies, the kernel does
// the same. Its methods are called from one goroutine.
type Frozen struct {
	pid     int
	tracer  *proc.Tracer
	tids    []int    // of its threads, the leader's first
	mem     *os.File // /proc/PID/mem
	c       *capture
	content *content
	missing []page.Mapping
	pending pendingSignals // in the image, where they were read again for it
	// unqueued tells that a thread had a signal that is in no queue, which was full when it came.
	unqueued bool
	ended    bool

	Ends bool // it is to be ended, not let run on; set before Capture
}

// Freeze stops all threads of process pid, for which it waits as long as the tracer does where
// patience is 0. Errors are those of
// proc.Tracer.SeizeAll: no such process, a zombie, a kernel thread, one that
// is traced already, that this user may not trace, or that does not stop.
func Freeze(ctx context.Context, pid int, patience time.Duration) (*Frozen, error) {
	tr, err := proc.NewTracer()
	if err != nil {
		return nil, err
	}
	tr.Patience = patience
	f := &Frozen{pid: pid, tracer: tr}
	if f.tids, err = tr.SeizeAll(ctx, pid); err != nil {
		tr.Close()
		return nil, err
	}
	if f.mem, err = os.Open("/proc/" + strconv.Itoa(pid) + "/mem"); err != nil {
		f.Release()
		return nil, err
	}
	return f, nil
}

// Thaw lets the process run on where it was, and does no more: Release follows,
// which may take longer.
func (f *Frozen) Thaw() {
	if !f.ended {
		_ = f.tracer.DetachAll()
	}
}

// Release lets the process run on where it was, and gives up what was held for
// it. It may be called again.
func (f *Frozen) Release() {
	if f.ended {
		return
	}
	f.ended = true
	f.tracer.Close()
	if f.mem != nil {
		f.mem.Close()
	}
	if f.content != nil {
		f.content.scan.Close()
	}
}

// Kill ends the process, and returns when it has ended.
func (f *Frozen) Kill() error {
	err := f.tracer.Kill(f.pid)
	f.Release()
	return err
}

// Owed is what the pager of an earlier restore says of the process. The zero
// value stands for a process without one.
type Owed struct {
	Missing []page.Mapping // what it has not installed yet
	Parts   []Part
	Unknown []string // memory of which it does not know what it holds
	Killed  bool     // it says nothing: it was killed
}

// nothing reports whether no memory is missing.
func (o *Owed) nothing() bool { return len(o.Missing)+len(o.Parts) == 0 }

// A Part is shared memory that was not installed because no mapping shows it, as far as the pager knows; some of it may be there
// all the same.
type Part struct {
	page.Range             // its image addresses
	Object     page.Object // what it is of
}

// Capture reads the process's state, all but the content of its memory. The
// error is a *RefusedError where the process holds something that an image
// cannot.
func (f *Frozen) Capture(ctx context.Context, owed Owed) error {
	if err := f.fromProc(); err != nil {
		return err
	}
	if err := f.awaitLetGo(ctx, &owed); err != nil {
		return err
	}
	if f.c.registered && owed.nothing() {
		f.c.refuseAbandoned(owed.Killed)
	}
	for _, r := range owed.Unknown {
		f.c.refused.add("memory "+r, "its pager does not know what it holds: it was taken away while it was missing, and not seen whether its content was to be kept",
			"end the process (kill -9 "+strconv.Itoa(f.pid)+"), and restore its image again")
	}
	err := f.look(ctx, &owed)
	if err := context.Cause(ctx); err != nil {
		return err
	}
	// All reasons are one message. An error beside a reason may come of what the
	// reason is about.
	if err := f.c.refused.err(); err != nil {
		return err
	}
	if err != nil {
		return err
	}
	if err := f.c.toInner(); err != nil {
		return err
	}
	if err := f.c.refuseSize(f.c.st.queued()); err != nil { // before anything is written
		return err
	}
	// What a restore would not take must not cost the process its life: an
	// address beyond four-level page tables, say.
	return f.c.st.validate()
}

// mostLooks is how often a process is looked at anew whose mappings its pager joins
// meanwhile, which it does once for each.
const mostLooks = 100

// fromProc reads what /proc tells.
func (f *Frozen) fromProc() error {
	for try := 1; ; try++ {
		f.c = &capture{pid: f.pid, st: new(State), inner: make(map[int]int), files: make(map[fileID]uint32), objects: make(map[objectID]*object)}
		err := f.c.fromProc()
		if err == nil || !f.c.registered || !errors.Is(err, unix.ENOENT) || try == mostLooks {
			return err
		}
	}
}

// look goes through what is not read from /proc: threads, holders, memory.
func (f *Frozen) look(ctx context.Context, owed *Owed) error {
	// On the tracer's thread: each of a thousand requests would else go there and back.
	if err := f.tracer.Do(func() error { return f.threads(ctx) }); err != nil {
		return err
	}
	scan, err := proc.NewPageScanner(f.pid)
	if err != nil {
		return err
	}
	f.content = &content{c: f.c, scan: scan, parts: owed.Parts}
	if f.missing, err = stillMissing(scan, f.c.smaps.VMAs, owed.Missing); err != nil {
		return err
	}
	f.content.owed = f.missing
	for _, m := range f.missing {
		f.content.missing.Add(m.Range)
	}
	if err := f.c.tracees(f.tids); err != nil {
		return err
	}
	if err := f.c.holders(); err != nil {
		return err
	}
	if err := f.content.find(); err != nil {
		return err
	}
	if f.Ends {
		f.c.heldInFiles()
	}
	return nil
}

// Abandoned refuses a process that has memory registered for which no pager
// answers, and that cannot be frozen to find what else stands against it. killed says
// that it had a pager. The error is a *RefusedError, nil where no memory is registered.
func Abandoned(pid int, killed bool) error {
	c := &capture{pid: pid}
	if err := c.readSmaps(); err != nil {
		return err
	}
	if !c.registeredMemory() {
		return nil
	}
	c.refuseAbandoned(killed)
	return c.refused.err()
}

// Unstoppable reports whether a thread of a process cannot be stopped before memory comes
// that is missing.
func Unstoppable(pid int) bool {
	tids, _ := proc.ReadTasks(pid)
	return slices.ContainsFunc(tids, proc.WaitsForPage)
}

// refuseAbandoned refuses a process whose pages may be missing with nobody to
// ask.
func (c *capture) refuseAbandoned(killed bool) {
	c.abandoned = true
	var first *proc.VMA
	n := 0
	for i := range c.smaps.VMAs {
		if v := &c.smaps.VMAs[i]; v.Flags&proc.VMUffdMissing != 0 {
			first = cmp.Or(first, v)
			n++
		}
	}
	what := vmaName(first)
	if n > 1 {
		what = fmt.Sprintf("%s and %d more", what, n-1)
	}
	if killed {
		c.refused.add(what, "the pager of the process was killed, and what it had not brought is missing",
			"end the process (kill -9 "+strconv.Itoa(c.pid)+"), and restore its image again")
		return
	}
	c.refused.add(what, "it is registered with a userfaultfd, and no pager of ours answers for what is missing",
		"wait until all of its memory is there; if criu restored it and its daemon was killed: lazyrestore lazy-pages --resume")
}

// Threads, Mappings, Descriptors and Bytes say how large a captured process is.
func (f *Frozen) Threads() int { return len(f.c.st.Threads) }

// Mappings is the number of mappings that the process has.
func (f *Frozen) Mappings() int { return len(f.c.st.VMAs) }

// Descriptors is the number of descriptors that the process has open.
func (f *Frozen) Descriptors() int { return len(f.c.st.FDs) }

// Bytes are those of the pages that a restore brings lazily and eagerly.
func (f *Frozen) Bytes() (lazy, eager uint64) { return f.c.st.LazyBytes, f.c.st.EagerBytes }

// Warnings are what the user should know although the process is preserved.
func (f *Frozen) Warnings() []string { return f.c.warn }

// DumpOptions are the wishes of a Dump.
type DumpOptions struct {
	Missing  PageReader            // where the pages come from that Capture was told are missing
	Progress func(done, of uint64) // bytes of memory; called from the calling goroutine
	Last     bool                  // the process is ended then, and what comes until that has to be in the image
}

// Dump writes the captured process into w: eager.raw, the pages, process.bin.
// The manifest is the caller's to finish.
func (f *Frozen) Dump(ctx context.Context, w *image.Writer, opts DumpOptions) error {
	st := f.c.st
	d := &dumper{pid: f.pid, mem: f.mem, w: w, source: opts.Missing, missing: f.missing}
	if opts.Progress != nil {
		d.progress = func(done uint64) { opts.Progress(done, st.LazyBytes) }
	}
	if err := d.eager(ctx, st, f.c.order); err != nil {
		return fmt.Errorf("write %s: %w", image.EagerObject, err)
	}
	if err := d.pages(ctx, f.content.pieces); err != nil {
		return err
	}
	if opts.Last {
		if err := f.arrived(); err != nil {
			return err
		}
	}
	state := st.Encode()
	if err := f.c.refuseSize(len(state)); err != nil {
		return err
	}
	out, err := w.Object(image.ProcessObject)
	if err != nil {
		return err
	}
	if _, err := out.Write(state); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

// Manifest describes the process; what depends on the pages is the writer's.
func (f *Frozen) Manifest() image.Manifest {
	st := f.c.st
	return image.Manifest{
		Writer:  "lazyrestore",
		Created: time.Now().UTC().Truncate(time.Second),
		Machine: image.Machine{Arch: st.Arch, XFeatures: st.XFeatures, PageSize: page.Size, VDSO: st.VDSO.Sum},
		Process: image.Process{
			PID: st.PID, Comm: st.Comm, Threads: len(st.Threads), Mappings: len(st.VMAs),
			EagerBytes: st.EagerBytes,
		},
	}
}

// threads reads every thread, the leader first, and asks the process what only
// it can answer.
func (f *Frozen) threads(ctx context.Context) error {
	st := f.c.st
	for _, tid := range f.tids {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		th := Thread{TID: tid}
		if err := f.thread(&th); err != nil {
			return fmt.Errorf("thread %d: %w", tid, err)
		}
		st.Threads = append(st.Threads, th)
	}
	f.c.timerClocks()
	if err := f.ask(); err != nil {
		return err
	}
	byGroup, err := f.tracer.GroupStopped(f.pid) // no thread is made to run any more
	if err != nil {
		return err
	}
	st.stopped(byGroup)
	return nil
}

func (f *Frozen) thread(th *Thread) error {
	tr, tid := f.tracer, th.TID
	var err error
	if th.Regs, err = tr.GetRegs(tid); err != nil {
		return err
	}
	if f.c.behindVDSO.Contains(page.Addr(th.Regs[proc.RIP])) {
		f.c.refused.add(threadName(tid), "it still runs code of a checkpoint that was killed", "try again")
	}
	if th.XState, err = tr.GetXState(tid); err != nil {
		return err
	}
	if err := f.sleep(th); err != nil {
		return err
	}
	f.c.st.XFeatures |= xfeatures(th.XState)
	if th.SigMask, err = tr.GetSigMask(tid); err != nil {
		return err
	}
	if th.Pending, err = tr.PeekSignals(tid, false); err != nil {
		return err
	}
	if tid == f.pid {
		if f.c.st.Pending, err = tr.PeekSignals(tid, true); err != nil {
			return err
		}
	}
	rs, err := tr.GetRSeq(tid)
	if err != nil {
		return err
	}
	th.RSeq = RSeq{Addr: rs.Addr, Len: rs.Len, Sig: rs.Sig}
	if rs.Addr != 0 {
		var word [8]byte
		if _, err := f.mem.ReadAt(word[:], int64(rs.Addr+rseqCSOffset)); err != nil {
			return fmt.Errorf("read its critical section: %w", err)
		}
		th.RSeq.CS = getWord(word[:])
	}
	if th.RobustList, th.RobustLen, err = proc.RobustList(tid); err != nil {
		return err
	}
	if err := f.threadRegisters(tid); err != nil {
		return err
	}
	f.code32(th)
	status, err := proc.ReadStatus(tid)
	if err != nil {
		return err
	}
	th.Comm = status.Name
	f.c.inner[tid] = innerID(&status)
	inQueue := len(th.Pending)
	th.Pending = queued(th.Pending, status.SigPnd)
	f.unqueued = f.unqueued || len(th.Pending) > inQueue
	if tid == f.pid {
		f.c.st.Pending = queued(f.c.st.Pending, status.ShdPnd)
	}
	if err := f.c.threadApart(tid, &status); err != nil {
		return err
	}
	if on, known, err := tr.SyscallDispatch(tid); err == nil && known && on {
		f.c.refused.add(threadName(tid), "its system calls are dispatched to user space", helpCRIU)
	}
	return f.scheduling(th)
}

// refuseSize refuses a process whose state has size bytes or more, if that is beyond what an image takes.
func (c *capture) refuseSize(size int) error {
	if size <= image.MaxProcess {
		return nil
	}
	c.refused.add("what is queued in pipes and sockets", "there is more of it than an image takes: "+image.ProcessObject+" would have "+strconv.Itoa(size)+" bytes",
		"have it read before the checkpoint")
	return c.refused.err()
}

// queued is how many bytes of the state are queued in pipes and sockets: of all that there is, nothing else makes it large.
func (st *State) queued() (n int) {
	for i := range st.Opens {
		n += len(st.Opens[i].Data)
	}
	for i := range st.Sockets {
		for _, message := range st.Sockets[i].Queue {
			n += len(message)
		}
	}
	return n
}
