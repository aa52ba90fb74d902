#include "textflag.h"

// What the kernel calls for a signal, on the signal stack of whatever thread of
// Go's: no Go may run here. DI is the signal's number. One byte of it is
// written to the pipe; a full pipe has signals enough.
TEXT ·onSignal(SB),NOSPLIT|NOFRAME,$0-0
	PUSHQ	DI
	MOVQ	SP, SI
	MOVLQSX	·signalPipe(SB), DI
	MOVL	$1, DX
	MOVL	$1, AX // write
	SYSCALL
	POPQ	DI
	RET

// Where onSignal returns to.
TEXT ·signalReturn(SB),NOSPLIT|NOFRAME,$0-0
	MOVL	$15, AX // rt_sigreturn
	SYSCALL
	BYTE	$0xcc // int3

// func signalCode() (handler, restorer uintptr)
TEXT ·signalCode(SB),NOSPLIT,$0-16
	LEAQ	·onSignal(SB), AX
	MOVQ	AX, handler+0(FP)
	LEAQ	·signalReturn(SB), AX
	MOVQ	AX, restorer+8(FP)
	RET
