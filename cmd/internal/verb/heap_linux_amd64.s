#include "textflag.h"

#define SYS_rt_sigprocmask 14
#define SYS_madvise 28
#define SYS_clone 56
#define SYS_exit 60
#define SIG_BLOCK 0
#define SIG_SETMASK 2
#define MADV_POPULATE_WRITE 23

// CLONE_VM, CLONE_FS, CLONE_FILES, CLONE_SIGHAND, CLONE_THREAD, CLONE_SYSVSEM
#define THREAD 0x50f00

// func populateBeside(addr, n uintptr)
//
// The thread has the stack of the one that makes it, and must not touch it: it has all
// signals blocked, for the frame of a handler would lie there.
TEXT ·populateBeside(SB), NOSPLIT, $16-16
	MOVQ	addr+0(FP), R12
	MOVQ	n+8(FP), R13
	MOVQ	$-1, AX
	MOVQ	AX, all-16(SP)
	MOVQ	$SIG_BLOCK, DI
	LEAQ	all-16(SP), SI
	LEAQ	old-8(SP), DX
	MOVQ	$8, R10
	MOVQ	$SYS_rt_sigprocmask, AX
	SYSCALL
	MOVQ	$THREAD, DI
	XORQ	SI, SI
	XORQ	DX, DX
	XORQ	R10, R10
	XORQ	R8, R8
	MOVQ	$SYS_clone, AX
	SYSCALL
	TESTQ	AX, AX
	JEQ	thread
	MOVQ	$SIG_SETMASK, DI
	LEAQ	old-8(SP), SI
	XORQ	DX, DX
	MOVQ	$8, R10
	MOVQ	$SYS_rt_sigprocmask, AX
	SYSCALL
	RET

thread:
	MOVQ	R12, DI
	MOVQ	R13, SI
	MOVQ	$MADV_POPULATE_WRITE, DX
	MOVQ	$SYS_madvise, AX
	SYSCALL
exit:
	XORQ	DI, DI
	MOVQ	$SYS_exit, AX
	SYSCALL
	JMP	exit
