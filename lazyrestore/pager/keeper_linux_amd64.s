#include "textflag.h"

// System call numbers of x86-64, and userfaultfd's request to change write
// protection (struct uffdio_writeprotect, linux/userfaultfd.h).
#define SYS_close 3
#define SYS_munmap 11
#define SYS_ioctl 16
#define SYS_clone 56
#define SYS_exit_group 231
#define SYS_setsid 112
#define SYS_prctl 157
#define SYS_ppoll 271
#define UFFDIO_WRITEPROTECT 0xc018aa06
#define PR_SET_NAME 15
#define CLONE_FILES 0x400

// Offsets in the page that the keeper keeps (keeperPage in keeper_linux.go).
#define PAGE_POLL 0
#define PAGE_SECOND 16
#define PAGE_PROBE 32
#define PAGE_NAME 64
#define PAGE_HOLES 80

// The errors that the probe tells apart, as the kernel returns them.
#define EBADF -9
#define ESRCH -3
#define EINVAL -22
#define ENOTTY -25

// func cloneKeeper(page uintptr, maxFD uintptr) (pid uintptr)
//
// In the caller it returns clone's result. In the child, which shares the
// caller's descriptors and has a copy of its memory, it never returns and
// touches neither the stack nor anything of Go's: first it gives all memory
// back but this code, the page and what the kernel may write to for it.
//
// R12 is the page, R13 the descriptor looked at, R14 the end of descriptors,
// R15 whether a served process still lives, BX the end of open descriptors.
TEXT ·cloneKeeper(SB), NOSPLIT, $0-24
	MOVQ	page+0(FP), R12
	MOVQ	maxFD+8(FP), R14
	MOVQ	$CLONE_FILES, DI
	XORQ	SI, SI
	XORQ	DX, DX
	XORQ	R10, R10
	XORQ	R8, R8
	MOVQ	$SYS_clone, AX
	SYSCALL
	TESTQ	AX, AX
	JEQ	child
	MOVQ	AX, pid+16(FP)
	RET

child:
	// A name to be known by, and a session of its own, so that what ends the
	// pager's process group or terminal does not end the keeper.
	MOVQ	$PR_SET_NAME, DI
	LEAQ	PAGE_NAME(R12), SI
	MOVQ	$SYS_prctl, AX
	SYSCALL
	MOVQ	$SYS_setsid, AX
	SYSCALL

	// The holes to unmap: start and length each.
	LEAQ	PAGE_HOLES(R12), R13
	MOVQ	$4, R15
unmap:
	MOVQ	0(R13), DI
	MOVQ	8(R13), SI
	MOVQ	$SYS_munmap, AX
	SYSCALL
	ADDQ	$16, R13
	DECQ	R15
	JNE	unmap

	// While the pager lives: wait for its end, without a timeout.
wait:
	MOVQ	R12, DI
	MOVQ	$1, SI
	XORQ	DX, DX
	XORQ	R10, R10
	MOVQ	$8, R8
	MOVQ	$SYS_ppoll, AX
	SYSCALL
	CMPQ	AX, $1
	JNE	wait

	// The pager is gone, and the descriptors are ours alone. Nobody shall
	// wait for the end of its output because of us. If the pager had closed
	// one of them, its number may be that of a uffd, which is kept.
	XORQ	R13, R13
stdio:
	MOVQ	R13, DI
	MOVQ	$UFFDIO_WRITEPROTECT, SI
	LEAQ	PAGE_PROBE(R12), DX
	MOVQ	$SYS_ioctl, AX
	SYSCALL
	CMPQ	AX, $ENOTTY
	JEQ	shut
	CMPQ	AX, $EINVAL
	JNE	shown
shut:
	MOVQ	R13, DI
	MOVQ	$SYS_close, AX
	SYSCALL
shown:
	INCQ	R13
	CMPQ	R13, $3
	JLT	stdio

	// Each second: is any descriptor a uffd whose process lives? The probe
	// takes write protection off a page that cannot be mapped.
again:
	XORQ	R15, R15
	XORQ	R13, R13
	XORQ	BX, BX
probe:
	MOVQ	R13, DI
	MOVQ	$UFFDIO_WRITEPROTECT, SI
	LEAQ	PAGE_PROBE(R12), DX
	MOVQ	$SYS_ioctl, AX
	SYSCALL
	CMPQ	AX, $EBADF
	JEQ	next
	LEAQ	1(R13), BX
	CMPQ	AX, $ENOTTY
	JEQ	next
	CMPQ	AX, $EINVAL
	JEQ	next
	CMPQ	AX, $ESRCH
	JEQ	next
	MOVQ	$1, R15
next:
	INCQ	R13
	CMPQ	R13, R14
	JLT	probe
	TESTQ	R15, R15
	JEQ	leave
	MOVQ	BX, R14	// nobody opens descriptors here any more

	MOVQ	$1, PAGE_SECOND(R12)	// the kernel has put the time that was left there: none
	MOVQ	$0, PAGE_SECOND+8(R12)
	XORQ	DI, DI
	XORQ	SI, SI
	LEAQ	PAGE_SECOND(R12), DX
	XORQ	R10, R10
	MOVQ	$8, R8
	MOVQ	$SYS_ppoll, AX
	SYSCALL
	JMP	again

leave:
	XORQ	DI, DI
	MOVQ	$SYS_exit_group, AX
	SYSCALL
	JMP	leave

// func keeperCode() (start, end uintptr)
//
// The bounds of cloneKeeper's code.
TEXT ·keeperCode(SB), NOSPLIT, $0-16
	LEAQ	·cloneKeeper(SB), AX
	MOVQ	AX, start+0(FP)
	LEAQ	·keeperCode(SB), AX
	MOVQ	AX, end+8(FP)
	RET
