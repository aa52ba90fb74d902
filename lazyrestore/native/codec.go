package native

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// process.bin is a magic line, then the fields of State in order: numbers as
// unsigned varints, strings, bytes and lists behind their count. Each type's
// fields are named once, in a function that a coder runs in either direction.
// This fixed part never changes: what came later is in sections behind it.

const stateMagic = "LRPROC1\n"

// errState is wrapped by every complaint about a process.bin.
var errState = errors.New("malformed process state")

// A coder appends to buf, or takes values off its front.
type coder struct {
	buf     []byte
	decodes bool
	err     error
	end     int // of buf, in process.bin
	at      int // where in process.bin what err is about is
}

// Encode is st as the bytes of process.bin.
func (st *State) Encode() []byte {
	c := &coder{buf: make([]byte, 0, 64<<10)}
	c.buf = append(c.buf, stateMagic...)
	c.state(st)
	c.appendSections(st)
	return c.buf
}

// DecodeState reads a process.bin. It never allocates more than a small
// multiple of len(b), whatever b says. The error wraps image.ErrVersion where a
// newer program has written it, else it is an *image.DamagedError.
func DecodeState(b []byte) (*State, error) {
	st, at, err := decodeState(b)
	if err != nil && !errors.Is(err, image.ErrVersion) {
		err = &image.DamagedError{Object: image.ProcessObject, Offset: int64(at), Frame: image.NoFrame, Err: err}
	}
	return st, err
}

// decodeState says where what it cannot decode is, too; 0: it is about all of b.
func decodeState(b []byte) (_ *State, at int, err error) {
	if len(b) < len(stateMagic) || string(b[:len(stateMagic)]) != stateMagic {
		return nil, 0, fmt.Errorf("%w: it does not begin with %q", errState, stateMagic)
	}
	c := &coder{buf: b[len(stateMagic):], end: len(b), decodes: true}
	st := new(State)
	c.state(st)
	c.takeSections(st)
	if c.err == nil {
		c.err = st.validate()
	}
	if c.err != nil {
		return nil, c.at, c.err
	}
	st.clipLazy()
	return st, 0, nil
}

// clipLazy has nothing registered beyond the end of a shared object, as early builds wrote it down: what the image has there is
// another object's, and cannot be installed.
func (st *State) clipLazy() {
	for i := range st.VMAs {
		v := &st.VMAs[i]
		may := st.withContent(v)
		v.Lazy = slices.DeleteFunc(v.Lazy, func(r page.Range) bool { return r.Intersect(may).Empty() })
		for k, r := range v.Lazy {
			v.Lazy[k] = r.Intersect(may)
		}
	}
}

func (c *coder) fail(format string, args ...any) {
	if c.err == nil {
		c.err, c.at = fmt.Errorf("%w: %s", errState, fmt.Sprintf(format, args...)), c.end-len(c.buf)
		c.buf = nil
	}
}

func (c *coder) u64(v *uint64) {
	if !c.decodes {
		c.buf = binary.AppendUvarint(c.buf, *v)
		return
	}
	if len(c.buf) > 0 && c.buf[0] < 0x80 { // as most are
		*v, c.buf = uint64(c.buf[0]), c.buf[1:]
		return
	}
	x, n := binary.Uvarint(c.buf)
	if n <= 0 {
		c.fail("a number is cut off")
		return
	}
	*v, c.buf = x, c.buf[n:]
}

// num codes any integer; what does not come back unchanged from 64 bits is an
// error, not a truncation.
//
// None of these reads what it decodes into: a page of fresh memory takes two exceptions
// where it is read before it is written, and a restore waits for each.
func num[T ~int | ~int64 | ~uint64 | ~uint32 | ~uint8](c *coder, v *T) {
	var x uint64
	if !c.decodes {
		x = uint64(*v)
	}
	c.u64(&x)
	if c.decodes {
		*v = T(x)
		if uint64(*v) != x {
			c.fail("the number %d is too large", x)
		}
	}
}

func (c *coder) flag(v *bool) {
	var x uint64
	if !c.decodes && *v {
		x = 1
	}
	c.u64(&x)
	if x > 1 {
		c.fail("a flag is %d", x)
	}
	*v = x == 1
}

// size codes the length of *v, which follows, and of which each element takes at
// least one byte.
func size[T any](c *coder, v *[]T) int {
	var x uint64
	if !c.decodes {
		x = uint64(len(*v))
	}
	c.u64(&x)
	if c.decodes && x > uint64(len(c.buf)) {
		c.fail("a list of %d in %d bytes", x, len(c.buf))
		return 0
	}
	return int(x)
}

func (c *coder) bytes(v *[]byte) {
	n := size(c, v)
	if !c.decodes {
		c.buf = append(c.buf, *v...)
		return
	}
	*v = nil
	if n > 0 {
		*v = c.buf[:n:n]
	}
	c.buf = c.buf[n:]
}

func (c *coder) str(v *string) {
	b := []byte(nil)
	if !c.decodes {
		b = []byte(*v)
	}
	c.bytes(&b)
	if c.decodes {
		*v = string(b)
	}
}

// list codes each element of v by each.
func list[T any](c *coder, v *[]T, each func(*T)) {
	n := size(c, v)
	if c.decodes {
		*v = nil
		if n > 0 && c.err == nil {
			*v = make([]T, n)
		}
	}
	for i := range *v {
		if c.err != nil {
			return
		}
		each(&(*v)[i])
	}
}

func nums[T ~int | ~int64 | ~uint64 | ~uint32 | ~uint8](c *coder, v *[]T) {
	list(c, v, func(x *T) { num(c, x) })
}

// span codes a range of whole pages.
func (c *coder) span(r *page.Range) {
	var start, pages uint64
	if !c.decodes {
		start, pages = uint64(r.Start)>>page.Shift, r.Pages()
	}
	c.u64(&start)
	c.u64(&pages)
	if c.decodes {
		if pages > 1<<52 || start > 1<<52 {
			c.fail("a range of %d pages at page %d", pages, start)
			return
		}
		*r = page.RangeOf(page.Addr(start<<page.Shift), pages<<page.Shift)
	}
}

func (c *coder) mapped(m *Mapped) {
	c.str(&m.Path)
	num(c, &m.Size)
	num(c, &m.MTime)
}

func (c *coder) state(st *State) {
	c.str(&st.Arch)
	num(c, &st.PID)
	c.str(&st.Comm)
	c.mapped(&st.Exe)
	c.str(&st.Cwd)
	num(c, &st.Umask)
	for _, v := range []*uint64{&st.Persona, &st.Dumpable, &st.PDeathSig, &st.TimerSlack, &st.XFeatures, &st.Membarrier, &st.LazyBytes, &st.EagerBytes} {
		c.u64(v)
	}
	for _, v := range []*bool{&st.THPDisable, &st.NoNewPrivs, &st.Subreaper} {
		c.flag(v)
	}
	num(c, &st.OOMScore)
	c.creds(&st.Creds)
	mm := &st.MM
	for _, v := range []*uint64{
		&mm.StartCode, &mm.EndCode, &mm.StartData, &mm.EndData, &mm.StartBrk, &mm.Brk,
		&mm.StartStack, &mm.ArgStart, &mm.ArgEnd, &mm.EnvStart, &mm.EnvEnd,
	} {
		c.u64(v)
	}
	c.bytes(&st.Auxv)
	num(c, &st.VDSO.Map)
	c.span(&st.VDSO.Text)
	c.u64(&st.VDSO.Size)
	c.str(&st.VDSO.Sum)
	list(c, &st.Limits, func(l *Limit) { c.u64(&l.Cur); c.u64(&l.Max) })
	list(c, &st.Actions, func(a *Action) { c.u64(&a.Handler); c.u64(&a.Flags); c.u64(&a.Restorer); c.u64(&a.Mask) })
	for i := range st.Timers {
		t := &st.Timers[i]
		for _, v := range []*uint64{&t.IntervalSec, &t.IntervalUsec, &t.ValueSec, &t.ValueUsec} {
			c.u64(v)
		}
	}
	list(c, &st.Pending, c.bytes)
	list(c, &st.Files, c.mapped)
	list(c, &st.VMAs, c.vma)
	list(c, &st.Shared, c.shared)
	list(c, &st.Opens, c.open)
	list(c, &st.FDs, func(f *FD) { num(c, &f.Num); num(c, &f.Open); c.flag(&f.CloExec) })
	list(c, &st.Threads, c.thread)
	list(c, &st.Eager, func(e *Eager) { c.span(&e.Range); num(c, &e.Shared) })
	num(c, &st.EagerSum)
	list(c, &st.Huge, c.span)
	list(c, &st.Guards, c.span)
}

func (c *coder) creds(cr *Creds) {
	for i := range cr.UID {
		num(c, &cr.UID[i])
		num(c, &cr.GID[i])
	}
	nums(c, &cr.Groups)
	for _, v := range []*uint64{&cr.Inh, &cr.Prm, &cr.Eff, &cr.Bnd, &cr.Amb, &cr.SecureBits} {
		c.u64(v)
	}
}

func (c *coder) vma(v *VMA) {
	c.span(&v.Range)
	num(c, &v.Kind)
	num(c, &v.Prot)
	num(c, &v.Flags)
	c.u64(&v.Advice)
	c.str(&v.Name)
	num(c, &v.File)
	c.u64(&v.Offset)
	c.flag(&v.Write)
	list(c, &v.Lazy, c.span)
}

func (c *coder) shared(s *SharedObject) {
	c.str(&s.Name)
	c.u64(&s.Size)
	num(c, &s.Image)
	c.flag(&s.Lazy)
}

func (c *coder) open(o *Open) {
	num(c, &o.Kind)
	c.str(&o.Path)
	num(c, &o.Flags)
	num(c, &o.Offset)
	c.mapped(&o.File)
	num(c, &o.Mode)
	c.u64(&o.Pipe)
	c.u64(&o.Size)
	c.bytes(&o.Data)
	c.u64(&o.Count)
	c.flag(&o.Sem)
	list(c, &o.Watches, func(w *Watch) { num(c, &w.FD); num(c, &w.Events); c.u64(&w.Data) })
	num(c, &o.Stdio)
	num(c, &o.Shared)
	num(c, &o.Owner)
	c.u64(&o.Signal)
}

func (c *coder) thread(t *Thread) {
	num(c, &t.TID)
	c.str(&t.Comm)
	for i := range t.Regs {
		c.u64(&t.Regs[i])
	}
	c.bytes(&t.XState)
	c.u64(&t.SigMask)
	list(c, &t.Pending, c.bytes)
	for _, v := range []*uint64{&t.AltStack.SP, &t.AltStack.Flags, &t.AltStack.Size, &t.RobustList, &t.RobustLen, &t.ClearTID} {
		c.u64(v)
	}
	c.u64(&t.RSeq.Addr)
	num(c, &t.RSeq.Len)
	num(c, &t.RSeq.Sig)
	c.u64(&t.RSeq.CS)
	nums(c, &t.Affinity)
	c.u64(&t.Policy)
	c.u64(&t.Priority)
	num(c, &t.Nice)
}
