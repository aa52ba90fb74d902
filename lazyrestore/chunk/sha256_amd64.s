#include "textflag.h"

// The extensions for SHA have one message wait for itself: each pair of rounds
// needs the one before, four cycles later, and the unit would take another pair
// meanwhile. So two messages are hashed at once.
//
// A lane's state is in two registers, as SHA256RNDS2 has it: from the highest
// word to the lowest A B E F and C D G H. X0 has the words of a message with
// their constants added, X13 is scratch, X14 turns the bytes of words around.

// Rounds 4*i to 4*i+3 with the words m.
#define ROUNDS(i, abef, cdgh, m) \
	MOVO        m, X0;            \
	PADDD       (i*16)(AX), X0;   \
	SHA256RNDS2 X0, abef, cdgh;   \
	PSHUFD      $0x0E, X0, X0;    \
	SHA256RNDS2 X0, cdgh, abef

// The words i of a block.
#define LOAD(i, p, m) \
	MOVOU  (i*16)(p), m; \
	PSHUFB X14, m

// What is still to be done to next, which has seen MSG1 and is due after m.
#define SCHEDULE(m, prev, next) \
	MOVO       m, X13;        \
	PALIGNR    $4, prev, X13; \
	PADDD      X13, next;     \
	SHA256MSG2 m, next

// Rounds of both lanes.
#define BOTH(i, m, n) \
	ROUNDS(i, X1, X2, m); \
	ROUNDS(i, X7, X8, n)

// Rounds of both lanes, and the words of four rounds later.
#define STEP(i, m, mprev, mnext, n, nprev, nnext) \
	BOTH(i, m, n);             \
	SCHEDULE(m, mprev, mnext); \
	SCHEDULE(n, nprev, nnext); \
	SHA256MSG1 m, mprev;       \
	SHA256MSG1 n, nprev

// func sha256Two(a, b *lane, p, q *byte, blocks int)
// Requires: SHA, SSE4.1, SSSE3
TEXT ·sha256Two(SB), NOSPLIT, $0-40
	MOVQ  a+0(FP), DI
	MOVQ  b+8(FP), SI
	MOVQ  p+16(FP), R8
	MOVQ  q+24(FP), R9
	MOVQ  blocks+32(FP), CX
	LEAQ  sha256K<>(SB), AX
	MOVOU sha256Swap<>(SB), X14
	MOVOU (DI), X1
	MOVOU 16(DI), X2
	MOVOU (SI), X7
	MOVOU 16(SI), X8

block:
	LOAD(0, R8, X3)
	LOAD(0, R9, X9)
	BOTH(0, X3, X9)
	LOAD(1, R8, X4)
	LOAD(1, R9, X10)
	BOTH(1, X4, X10)
	SHA256MSG1 X4, X3
	SHA256MSG1 X10, X9
	LOAD(2, R8, X5)
	LOAD(2, R9, X11)
	BOTH(2, X5, X11)
	SHA256MSG1 X5, X4
	SHA256MSG1 X11, X10
	LOAD(3, R8, X6)
	LOAD(3, R9, X12)
	STEP(3, X6, X5, X3, X12, X11, X9)
	STEP(4, X3, X6, X4, X9, X12, X10)
	STEP(5, X4, X3, X5, X10, X9, X11)
	STEP(6, X5, X4, X6, X11, X10, X12)
	STEP(7, X6, X5, X3, X12, X11, X9)
	STEP(8, X3, X6, X4, X9, X12, X10)
	STEP(9, X4, X3, X5, X10, X9, X11)
	STEP(10, X5, X4, X6, X11, X10, X12)
	STEP(11, X6, X5, X3, X12, X11, X9)
	STEP(12, X3, X6, X4, X9, X12, X10)
	STEP(13, X4, X3, X5, X10, X9, X11)
	STEP(14, X5, X4, X6, X11, X10, X12)
	BOTH(15, X6, X12)

	MOVOU (DI), X0
	MOVOU 16(DI), X13
	PADDD X0, X1
	PADDD X13, X2
	MOVOU X1, (DI)
	MOVOU X2, 16(DI)
	MOVOU (SI), X0
	MOVOU 16(SI), X13
	PADDD X0, X7
	PADDD X13, X8
	MOVOU X7, (SI)
	MOVOU X8, 16(SI)
	ADDQ  $64, R8
	ADDQ  $64, R9
	DECQ  CX
	JNZ   block
	RET

// func hasSHA() bool
TEXT ·hasSHA(SB), NOSPLIT, $0-1
	MOVB $0, ret+0(FP)
	XORL AX, AX
	CPUID
	CMPL AX, $7
	JB   no
	MOVL $1, AX
	XORL CX, CX
	CPUID
	ANDL $0x80200, CX // SSE4.1, SSSE3
	CMPL CX, $0x80200
	JNE  no
	MOVL $7, AX
	XORL CX, CX
	CPUID
	SHRL $29, BX
	ANDL $1, BX
	MOVB BX, ret+0(FP)

no:
	RET

DATA sha256Swap<>+0(SB)/8, $0x0405060700010203
DATA sha256Swap<>+8(SB)/8, $0x0c0d0e0f08090a0b
GLOBL sha256Swap<>(SB), RODATA|NOPTR, $16

DATA sha256K<>+0(SB)/8, $0x71374491428a2f98
DATA sha256K<>+8(SB)/8, $0xe9b5dba5b5c0fbcf
DATA sha256K<>+16(SB)/8, $0x59f111f13956c25b
DATA sha256K<>+24(SB)/8, $0xab1c5ed5923f82a4
DATA sha256K<>+32(SB)/8, $0x12835b01d807aa98
DATA sha256K<>+40(SB)/8, $0x550c7dc3243185be
DATA sha256K<>+48(SB)/8, $0x80deb1fe72be5d74
DATA sha256K<>+56(SB)/8, $0xc19bf1749bdc06a7
DATA sha256K<>+64(SB)/8, $0xefbe4786e49b69c1
DATA sha256K<>+72(SB)/8, $0x240ca1cc0fc19dc6
DATA sha256K<>+80(SB)/8, $0x4a7484aa2de92c6f
DATA sha256K<>+88(SB)/8, $0x76f988da5cb0a9dc
DATA sha256K<>+96(SB)/8, $0xa831c66d983e5152
DATA sha256K<>+104(SB)/8, $0xbf597fc7b00327c8
DATA sha256K<>+112(SB)/8, $0xd5a79147c6e00bf3
DATA sha256K<>+120(SB)/8, $0x1429296706ca6351
DATA sha256K<>+128(SB)/8, $0x2e1b213827b70a85
DATA sha256K<>+136(SB)/8, $0x53380d134d2c6dfc
DATA sha256K<>+144(SB)/8, $0x766a0abb650a7354
DATA sha256K<>+152(SB)/8, $0x92722c8581c2c92e
DATA sha256K<>+160(SB)/8, $0xa81a664ba2bfe8a1
DATA sha256K<>+168(SB)/8, $0xc76c51a3c24b8b70
DATA sha256K<>+176(SB)/8, $0xd6990624d192e819
DATA sha256K<>+184(SB)/8, $0x106aa070f40e3585
DATA sha256K<>+192(SB)/8, $0x1e376c0819a4c116
DATA sha256K<>+200(SB)/8, $0x34b0bcb52748774c
DATA sha256K<>+208(SB)/8, $0x4ed8aa4a391c0cb3
DATA sha256K<>+216(SB)/8, $0x682e6ff35b9cca4f
DATA sha256K<>+224(SB)/8, $0x78a5636f748f82ee
DATA sha256K<>+232(SB)/8, $0x8cc7020884c87814
DATA sha256K<>+240(SB)/8, $0xa4506ceb90befffa
DATA sha256K<>+248(SB)/8, $0xc67178f2bef9a3f7
GLOBL sha256K<>(SB), RODATA|NOPTR, $256
