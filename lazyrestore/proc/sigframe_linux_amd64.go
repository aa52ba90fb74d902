package proc

import (
	"encoding/binary"
	"fmt"
)

// A signal frame holds the context of a thread such that rt_sigreturn(2) takes
// it: struct rt_sigframe of the kernel's <asm/sigframe.h>, with the extended
// registers beside it.
const (
	frameSize    = 8 + 304 + 128 // return address, struct ucontext, siginfo_t
	frameContext = 8
	frameGregs   = frameContext + 40  // struct sigcontext
	frameFPState = frameGregs + 184   // pointer to the extended registers
	frameSigMask = frameContext + 296 // uc_sigmask
	frameSSFlags = frameContext + 24  // uc_stack.ss_flags
)

// Flags in uc_flags: the frame has XSAVE's extended registers, and a stack
// segment that is to be restored as it is.
const ucFlags = 1 | 2 | 4

// badStackFlags in uc_stack.ss_flags are ones that the kernel does not take:
// it leaves the thread's alternate stack, which a tracer cannot know, alone.
const badStackFlags = 7

// frameRegs are the registers of struct sigcontext, in its order.
var frameRegs = [...]int{
	R8, R9, R10, R11, R12, R13, R14, R15, RDI, RSI, RBP, RBX, RDX, RAX, RCX, RSP, RIP, EFlags,
}

// XSAVE's layout: the legacy area of 512 bytes, whose last 48 belong to
// software, and the header of 64.
const (
	xsaveSoftware = 464 // struct _fpx_sw_bytes; in NT_X86_XSTATE the features that the kernel uses
	xsaveHeader   = 512
	xsaveMin      = xsaveHeader + 64
	xsaveMagic1   = 0x46505853
	xsaveMagic2   = 0x46505845
	xsaveTileData = 1 << 18 // AMX: in the frame only where the thread uses it
	xsaveAlign    = 64
)

// cpuid is the instruction of that name.
func cpuid(leaf, sub uint32) (eax, ebx, ecx, edx uint32)

// xsaveSize is the size of XSAVE's standard layout with the given features.
func xsaveSize(features uint64) int {
	size := xsaveMin
	for i := uint32(2); i < 63; i++ {
		if features&(1<<i) == 0 {
			continue
		}
		const xstateLeaf = 0xd
		n, offset, _, _ := cpuid(xstateLeaf, i)
		size = max(size, int(offset+n))
	}
	return size
}

// A sigFrame is the image of a frame in memory.
type sigFrame struct {
	mem []byte // extended registers, then the frame
	at  uint64 // address of mem, a multiple of 64
	sp  uint64 // the stack pointer with which rt_sigreturn finds the frame
}

// layFrame makes a frame at address at that gives a thread its registers,
// extended registers (as NT_X86_XSTATE has them) and signal mask.
func layFrame(at uint64, regs *Regs, mask uint64, xstate []byte) (sigFrame, error) {
	if at%xsaveAlign != 0 || len(xstate) < xsaveMin {
		return sigFrame{}, fmt.Errorf("lay a signal frame at %#x: %d bytes of extended registers", at, len(xstate))
	}
	le := binary.LittleEndian
	used := le.Uint64(xstate[xsaveHeader:])
	features := le.Uint64(xstate[xsaveSoftware:])&^xsaveTileData | used&xsaveTileData
	size := xsaveSize(features)
	if size > len(xstate) {
		return sigFrame{}, fmt.Errorf("lay a signal frame: features %#x need %d bytes of %d", features, size, len(xstate))
	}
	// The magic number behind the registers, then the frame.
	start := (size + 4 + 15) &^ 15
	mem := make([]byte, start+frameSize)
	copy(mem, xstate[:size])
	clear(mem[xsaveSoftware:xsaveHeader])
	le.PutUint32(mem[xsaveSoftware:], xsaveMagic1)
	le.PutUint32(mem[xsaveSoftware+4:], uint32(size+4)) // extended_size
	le.PutUint64(mem[xsaveSoftware+8:], features)
	le.PutUint32(mem[xsaveSoftware+16:], uint32(size)) // xstate_size
	le.PutUint32(mem[size:], xsaveMagic2)

	f := mem[start:]
	le.PutUint64(f[frameContext:], ucFlags)
	le.PutUint32(f[frameSSFlags:], badStackFlags)
	for i, r := range frameRegs {
		le.PutUint64(f[frameGregs+8*i:], regs[r])
	}
	segments := f[frameGregs+8*len(frameRegs):]
	le.PutUint16(segments, uint16(regs[CS]))
	le.PutUint16(segments[6:], uint16(regs[SS]))
	le.PutUint64(f[frameFPState:], at)
	le.PutUint64(f[frameSigMask:], mask)
	return sigFrame{mem: mem, at: at, sp: at + uint64(start) + 8}, nil
}
