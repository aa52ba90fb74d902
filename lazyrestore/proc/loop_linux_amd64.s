#include "textflag.h"

// The loop that runs a table of system calls. It is position independent and
// uses neither stack nor TLS: it is copied into other processes, and run by
// children that share our memory.
//
//	R12  next entry: number, six arguments, result, 8 bytes each (call.go)
//	R13  what ENDING needs
//
// SYSCALL leaves all registers as they are but AX, CX and R11. The new task of
// a clone3 (435) has AX 0 and goes on with the table at its R9.
#define LOOP \
loop: \
	MOVQ 0(R12), AX; \
	CMPQ AX, $-1; \
	JEQ  end; \
	CMPQ AX, $-2; \
	JEQ  jump; \
	MOVQ 8(R12), DI; \
	MOVQ 16(R12), SI; \
	MOVQ 24(R12), DX; \
	MOVQ 32(R12), R10; \
	MOVQ 40(R12), R8; \
	MOVQ 48(R12), R9; \
	MOVL AX, AX; \
	SYSCALL; \
	CMPL 0(R12), $435; \
	JNE  store; \
	TESTQ AX, AX; \
	JNE  store; \
	MOVQ R9, R12; \
	JMP  loop; \
store: \
	MOVQ AX, 56(R12); \
	CMPQ AX, $-4095; \
	JCS  next; \
	TESTL $1, 4(R12); \
	JEQ  end; \
next: \
	ADDQ $64, R12; \
	JMP  loop; \
jump: \
	MOVQ 8(R12), AX; \
	MOVQ 16(R12), R12; \
	JMP  AX; \
end: \

// MARK shows where the code ends: LoopCode looks for it, because the linker
// may put any function behind this one.
#define MARK \
	QUAD $0x6c6f6f702d656e64

// EndTrap: stop for the tracer.
TEXT loopTrap<>(SB),NOSPLIT|NOFRAME,$0-0
	LOOP
	BYTE $0xcc // int3
	MARK

// EndSignal: R13 points to process, thread, signal and the address behind a
// signal frame's first word. Send the signal to this thread, which stops it if
// it is traced; if not, take the context in the frame. The offset of the
// instruction after the first SYSCALL is found by LoopCode's test and used by
// the injector, which knows its own signal by it.
TEXT loopSignal<>(SB),NOSPLIT|NOFRAME,$0-0
	LOOP
	MOVQ 0(R13), DI
	MOVQ 8(R13), SI
	MOVQ 16(R13), DX
	MOVL $234, AX // tgkill
	SYSCALL
	MOVQ 24(R13), SP
	MOVL $15, AX // rt_sigreturn
	SYSCALL
	BYTE $0xcc // int3
	MARK

// EndExit: exit_group(127).
TEXT loopExit<>(SB),NOSPLIT|NOFRAME,$0-0
	LOOP
	MOVL $127, DI
	MOVL $231, AX // exit_group
	SYSCALL
	BYTE $0xcc // int3
	MARK

// func loopTrapAddr() uintptr
TEXT ·loopTrapAddr(SB),NOSPLIT,$0-8
	LEAQ loopTrap<>(SB), AX
	MOVQ AX, ret+0(FP)
	RET

// func loopSignalAddr() uintptr
TEXT ·loopSignalAddr(SB),NOSPLIT,$0-8
	LEAQ loopSignal<>(SB), AX
	MOVQ AX, ret+0(FP)
	RET

// func loopExitAddr() uintptr
TEXT ·loopExitAddr(SB),NOSPLIT,$0-8
	LEAQ loopExit<>(SB), AX
	MOVQ AX, ret+0(FP)
	RET

// func rawCloneTable(args uintptr, size uintptr, table uintptr) int64
//
// The child never returns: it goes to the loop with nothing of ours but the
// table's address in a register, so that no stack of Go's is touched by it.
TEXT ·rawCloneTable(SB),NOSPLIT,$0-32
	MOVQ args+0(FP), DI
	MOVQ size+8(FP), SI
	MOVQ table+16(FP), R12
	MOVL $435, AX // clone3
	SYSCALL
	TESTQ AX, AX
	JEQ  child
	MOVQ AX, ret+24(FP)
	RET
child:
	JMP  loopExit<>(SB)

// func cpuid(leaf, sub uint32) (eax, ebx, ecx, edx uint32)
TEXT ·cpuid(SB),NOSPLIT,$0-24
	MOVL leaf+0(FP), AX
	MOVL sub+4(FP), CX
	CPUID
	MOVL AX, eax+8(FP)
	MOVL BX, ebx+12(FP)
	MOVL CX, ecx+16(FP)
	MOVL DX, edx+20(FP)
	RET
