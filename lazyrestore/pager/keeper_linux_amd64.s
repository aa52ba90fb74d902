#include "textflag.h"

// System call numbers of x86-64, and userfaultfd's request to change write
// protection (struct uffdio_writeprotect, linux/userfaultfd.h).
#define SYS_close 3
#define SYS_poll 7
#define SYS_munmap 11
#define SYS_rt_sigprocmask 14
#define SYS_ioctl 16
#define SYS_getpid 39
#define SYS_recvfrom 45
#define SYS_clone 56
#define SYS_exit_group 231
#define SYS_getppid 110
#define SYS_setsid 112
#define SYS_capget 125
#define SYS_rt_sigtimedwait 128
#define SYS_prctl 157
#define SYS_arch_prctl 158
#define SYS_ppoll 271
#define UFFDIO_WRITEPROTECT 0xc018aa06
#define FIONREAD 0x541b
#define PEEK 0x42 // MSG_PEEK|MSG_DONTWAIT
#define PR_SET_PDEATHSIG 1
#define PR_SET_NAME 15
#define PR_GET_NAME 16
#define PR_SET_TIMERSLACK 29
#define PR_GET_TIMERSLACK 30
#define ARCH_GET_FS 0x1003
#define CLONE_FILES 0x400
#define SIG_SETMASK 2
#define SIGUSR1 10
#define CAP_VERSION 0x20080522
#define CAP_SYS_NICE 23

// Offsets in the page that the keeper keeps (keeper_linux.go), with room for the
// name of the thread that makes it; those from PAGE_ALL on are those of enter alone.
#define PAGE_PARENT 0
#define PAGE_SIGNALS 8
#define PAGE_WAIT 16
#define PAGE_PROBE 32
#define PAGE_SOCKET 56
#define PAGE_NAME 64
#define PAGE_HOLES 80
#define PAGE_OWN 144
#define PAGE_UNREAD 160
#define PAGE_LAST 164
#define PAGE_ALL 168
#define PAGE_MASK 176
#define PAGE_FS 184
#define PAGE_PID 192
#define PAGE_SLACK 200
#define PAGE_CAPS 208
#define PAGE_SIZE 240

// How often it looks whether its pager lives of whose end nothing tells.
#define PAGER_SECONDS 4

// The timer slack that a restoring command starts with (slack_linux.go).
#define LONG_SLACK 1000000

// Memory is unmapped by pages, up to the end of what a process may have.
#define PAGE_DOWN $~4095
#define USER_END $0x7ffffffff000
#define MAX_FD $0x10000
#define PROBE_ADDR 0x7fffffffe000

// MAKE_KEEPER makes the child, with the page at R12, and leaves clone's result
// in AX. The child has its name, by which it is known, from the beginning: it has that of
// the thread that makes it, which bears it meanwhile.
#define MAKE_KEEPER \
	MOVQ	$PR_GET_NAME, DI \
	LEAQ	PAGE_OWN(R12), SI \
	MOVQ	$SYS_prctl, AX \
	SYSCALL \
	MOVQ	$PR_SET_NAME, DI \
	LEAQ	PAGE_NAME(R12), SI \
	MOVQ	$SYS_prctl, AX \
	SYSCALL \
	MOVQ	$CLONE_FILES, DI \
	XORQ	SI, SI \
	XORQ	DX, DX \
	XORQ	R10, R10 \
	XORQ	R8, R8 \
	MOVQ	$SYS_clone, AX \
	SYSCALL \
	TESTQ	AX, AX \
	JEQ	child \
	MOVQ	AX, R13 \
	MOVQ	$PR_SET_NAME, DI \
	LEAQ	PAGE_OWN(R12), SI \
	MOVQ	$SYS_prctl, AX \
	SYSCALL \
	MOVQ	R13, AX

// The errors that the probe tells apart, as the kernel returns them.
#define EBADF -9
#define ESRCH -3
#define EINVAL -22
#define ENOTTY -25

// func cloneKeeper(page uintptr, maxFD uintptr) (pid uintptr)
//
// In the caller it returns clone's result. The child, which shares the
// caller's descriptors and has a copy of its memory, is a keeper.
TEXT ·cloneKeeper(SB), NOSPLIT, $0-24
	MOVQ	page+0(FP), R12
	MOVQ	maxFD+8(FP), R14
	MAKE_KEEPER
	MOVQ	AX, pid+16(FP)
	RET
child:
	JMP	·keeper(SB)

// func keeper()
//
// What a keeper does, with all signals blocked. It never returns and
// touches neither the stack nor anything of Go's: first it gives all memory
// back but this code, the page and what the kernel may write to for it.
//
// R12 is the page, R13 the descriptor looked at, R14 the end of descriptors,
// R15 whether a served process still lives, BX the end of open descriptors.
TEXT ·keeper(SB), NOSPLIT|NOFRAME, $0-0
	// A session of its own, so that what ends the pager's process group or
	// terminal does not end the keeper.
	MOVQ	$SYS_setsid, AX
	SYSCALL

	// The kernel is to tell of the end of the thread that is the parent, and, as
	// the next one of its process becomes that then, of theirs.
	MOVQ	$PR_SET_PDEATHSIG, DI
	MOVQ	$SIGUSR1, SI
	MOVQ	$SYS_prctl, AX
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

	// While the pager lives: wait for a signal that says that it may have
	// ended. What comes between the look and the wait stays pending. None comes
	// from a pager that has given up its rights: it may not signal us.
	MOVQ	$PAGER_SECONDS, PAGE_WAIT(R12)
	MOVQ	$0, PAGE_WAIT+8(R12)
wait:
	MOVQ	$SYS_getppid, AX
	SYSCALL
	CMPQ	AX, PAGE_PARENT(R12)
	JNE	gone
	LEAQ	PAGE_SIGNALS(R12), DI
	XORQ	SI, SI
	LEAQ	PAGE_WAIT(R12), DX
	MOVQ	$8, R10
	MOVQ	$SYS_rt_sigtimedwait, AX
	SYSCALL
	JMP	wait

gone:
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
	JNE	stay

	// What has come over the socket, if it has one to look at, and nobody has taken:
	// userfaultfds may be among it. If it listens that is a connection.
	MOVLQSX	PAGE_SOCKET(R12), DI
	MOVQ	$FIONREAD, SI
	LEAQ	PAGE_UNREAD(R12), DX
	MOVL	$0, PAGE_UNREAD(R12)
	MOVQ	$SYS_ioctl, AX
	SYSCALL
	CMPL	PAGE_UNREAD(R12), $0
	JEQ	none
	CMPL	PAGE_UNREAD(R12), $4
	JNE	stay

	// A word alone may be the last, which brings nothing.
	MOVLQSX	PAGE_SOCKET(R12), DI
	LEAQ	PAGE_UNREAD(R12), SI
	MOVQ	$4, DX
	MOVQ	$PEEK, R10
	XORQ	R8, R8
	XORQ	R9, R9
	MOVQ	$SYS_recvfrom, AX
	SYSCALL
	MOVL	PAGE_LAST(R12), AX
	CMPL	AX, PAGE_UNREAD(R12)
	JEQ	leave
	JMP	stay
none:
	CMPQ	AX, $EINVAL
	JNE	leave	// it is read, or there is none
	LEAQ	PAGE_SOCKET(R12), DI
	MOVQ	$1, SI
	XORQ	DX, DX
	MOVQ	$SYS_poll, AX
	SYSCALL
	CMPQ	AX, $1
	JNE	leave

stay:
	MOVQ	BX, R14	// nobody opens descriptors here any more

	MOVQ	$1, PAGE_WAIT(R12)	// the kernel puts the time that is left there: none
	MOVQ	$0, PAGE_WAIT+8(R12)
	XORQ	DI, DI
	XORQ	SI, SI
	LEAQ	PAGE_WAIT(R12), DX
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
// The bounds of keeper's code.
TEXT ·keeperCode(SB), NOSPLIT, $0-16
	LEAQ	·keeper(SB), AX
	MOVQ	AX, start+0(FP)
	LEAQ	·keeperCode(SB), AX
	MOVQ	AX, end+8(FP)
	RET

// The page of the keeper that enter starts.
DATA entered<>+PAGE_SIGNALS(SB)/8, $(1<<(SIGUSR1-1))
DATA entered<>+PAGE_PROBE(SB)/8, $PROBE_ADDR
DATA entered<>+(PAGE_PROBE+8)(SB)/8, $4096
DATA entered<>+PAGE_SOCKET(SB)/8, $-1
DATA entered<>+PAGE_NAME(SB)/8, $"lazyrest"
DATA entered<>+(PAGE_NAME+8)(SB)/8, $"-keeper\x00"
DATA entered<>+PAGE_ALL(SB)/8, $-1
DATA entered<>+PAGE_CAPS(SB)/8, $CAP_VERSION
GLOBL entered<>(SB), NOPTR, $PAGE_SIZE

// func enter()
//
// Where an executable is entered that is linked with -E and this function's
// name: it starts a keeper if the first argument is "restore", has a long timer
// slack, and goes on to where Go begins. There is next to no memory yet to be copied.
TEXT ·enter(SB), NOSPLIT|NOFRAME, $0-0
	MOVQ	DX, R15	// what the loader of shared libraries wants called at the end
	CMPQ	0(SP), $2
	JLT	begin
	MOVQ	16(SP), AX
	MOVQ	$0x0065726f74736572, CX	// "restore" and its end
	CMPQ	0(AX), CX
	JNE	begin

	// A C library that is there already may have memory that the kernel writes to.
	LEAQ	entered<>(SB), R12
	MOVQ	$ARCH_GET_FS, DI
	LEAQ	PAGE_FS(R12), SI
	MOVQ	$SYS_arch_prctl, AX
	SYSCALL
	CMPQ	PAGE_FS(R12), $0
	JNE	begin

	MOVQ	$SYS_getpid, AX
	SYSCALL
	MOVQ	AX, PAGE_PARENT(R12)

	// The holes: below the code, from there to the page, and what is above.
	LEAQ	·keeper(SB), AX
	ANDQ	PAGE_DOWN, AX
	MOVQ	AX, (PAGE_HOLES+8)(R12)
	LEAQ	·keeperCode+4095(SB), AX
	ANDQ	PAGE_DOWN, AX
	MOVQ	AX, (PAGE_HOLES+16)(R12)
	MOVQ	R12, CX
	ANDQ	PAGE_DOWN, CX
	SUBQ	AX, CX
	MOVQ	CX, (PAGE_HOLES+24)(R12)
	LEAQ	(PAGE_SIZE+4095)(R12), AX
	ANDQ	PAGE_DOWN, AX
	MOVQ	AX, (PAGE_HOLES+32)(R12)
	MOVQ	USER_END, CX
	SUBQ	AX, CX
	MOVQ	CX, (PAGE_HOLES+40)(R12)

	MOVQ	$SIG_SETMASK, DI
	LEAQ	PAGE_ALL(R12), SI
	LEAQ	PAGE_MASK(R12), DX
	MOVQ	$8, R10
	MOVQ	$SYS_rt_sigprocmask, AX
	SYSCALL
	MOVQ	MAX_FD, R14
	MAKE_KEEPER
	MOVQ	AX, PAGE_PID(R12)	// or an error, which is negative
	MOVQ	$SIG_SETMASK, DI
	LEAQ	PAGE_MASK(R12), SI
	XORQ	DX, DX
	MOVQ	$8, R10
	MOVQ	$SYS_rt_sigprocmask, AX
	SYSCALL

	// A long slack for what Go starts, if it can be taken from that again.
	LEAQ	PAGE_CAPS(R12), DI
	LEAQ	(PAGE_CAPS+8)(R12), SI
	MOVQ	$SYS_capget, AX
	SYSCALL
	MOVL	(PAGE_CAPS+8)(R12), AX
	BTL	$CAP_SYS_NICE, AX
	JCC	begin
	MOVQ	$PR_GET_TIMERSLACK, DI
	MOVQ	$SYS_prctl, AX
	SYSCALL
	TESTQ	AX, AX
	JEQ	begin	// a real-time thread, which has none
	CMPQ	AX, $LONG_SLACK
	JCC	begin	// it is as long, or an error
	MOVQ	AX, PAGE_SLACK(R12)
	MOVQ	$PR_SET_TIMERSLACK, DI
	MOVQ	$LONG_SLACK, SI
	MOVQ	$SYS_prctl, AX
	SYSCALL
begin:
	MOVQ	R15, DX
	JMP	_rt0_amd64_linux(SB)
child:
	JMP	·keeper(SB)

// func enteredKeeper() (pid int)
//
// The keeper that enter has started; 0 or below: none.
TEXT ·enteredKeeper(SB), NOSPLIT, $0-8
	MOVQ	entered<>+PAGE_PID(SB), AX
	MOVQ	AX, pid+0(FP)
	RET

// func enteredSlack() (ns uint64)
//
// The timer slack that enter has found and made longer; 0: it has not.
TEXT ·enteredSlack(SB), NOSPLIT, $0-8
	MOVQ	entered<>+PAGE_SLACK(SB), AX
	MOVQ	AX, ns+0(FP)
	RET
