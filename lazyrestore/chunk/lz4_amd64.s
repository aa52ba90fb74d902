#include "textflag.h"

// lz4SegmentGo, step by step: what that finds and writes, this does. Go takes two
// dozen instructions for each position that is tried, where these are 17, and
// calls for what is copied and compared 16 bytes at a time here. Only SSE2 is
// used, which every processor has.
//
// SI is the segment, DI where the output goes on, BX the table, R8 the position
// s, R9 the limit of the search, R10 SI+1-offset, R11 the anchor, R12 the step,
// R14 the hash's factor; AX, CX, DX and R13 are scratch.

// func lz4SegmentAsm(table *lz4Table, dst, seg *byte, n, anchor int) (newAnchor, d int)
TEXT ·lz4SegmentAsm(SB), NOSPLIT, $0-56
	MOVQ table+0(FP), BX
	MOVQ dst+8(FP), DI
	MOVQ seg+16(FP), SI
	MOVQ n+24(FP), R9
	MOVQ anchor+32(FP), R11
	SUBQ $12, R9               // lz4Margin
	MOVQ $65536, AX            // lz4Segment
	CMPQ R9, AX
	CMOVQGT AX, R9
	XORL R8, R8
	TESTQ R11, R11
	CMOVQGT R11, R8
	INCQ R8
	MOVQ SI, R10               // offset 1
	MOVQ $0xcf1bbcdcbb000000, R14 // lz4Prime<<24

search:
	MOVQ $64, R12              // lz4Word << lz4Patience
	CMPQ R8, R9
	JGE  done

	PCALIGN $32

probe:
	MOVQ    (SI)(R8*1), R13
	MOVL    1(SI)(R8*1), DX
	MOVQ    R13, AX
	IMULQ   R14, AX
	SHRQ    $51, AX            // 64 - lz4TableBits
	MOVWLZX (BX)(AX*2), CX
	MOVW    R8, (BX)(AX*2)
	CMPL    DX, (R10)(R8*1)
	JEQ     again
	CMPL    R13, (SI)(CX*1)
	JEQ     found
	MOVQ    R12, AX
	SHRQ    $4, AX             // lz4Patience
	ADDQ    AX, R8
	INCQ    R12
	ANDQ    $-4, R8            // lz4Word
	CMPQ    R8, R9
	JLT     probe

done:
	MOVQ R11, newAnchor+40(FP)
	SUBQ dst+8(FP), DI
	MOVQ DI, d+48(FP)
	RET

again:
	LEAQ (R10)(R8*1), CX
	SUBQ SI, CX
	INCQ R8

	// A match of s with CX. Make it longer backwards: at most to the anchor and
	// to the segment's start.
found:
	MOVQ R8, AX
	SUBQ R11, AX
	CMPQ CX, AX
	CMOVQLT CX, AX
	CMPQ CX, $8
	JLT  back
	MOVQ -8(SI)(R8*1), DX
	XORQ -8(SI)(CX*1), DX
	JEQ  back
	BSRQ DX, DX
	XORQ $63, DX
	SHRQ $3, DX
	CMPQ AX, DX
	CMOVQLT AX, DX
	SUBQ DX, R8
	SUBQ DX, CX
	JMP  forward

back:
	TESTQ AX, AX
	JEQ  forward
	MOVBLZX -1(SI)(R8*1), DX
	CMPB DX, -1(SI)(CX*1)
	JNE  forward
	DECQ R8
	DECQ CX
	DECQ AX
	JMP  back

	// R13 becomes the match's end, AX its offset.
forward:
	MOVQ R8, AX
	SUBQ CX, AX
	MOVQ SI, R10
	SUBQ AX, R10
	LEAQ 4(R8), R13            // lz4MinMatch
	MOVQ n+24(FP), CX
	SUBQ $13, CX               // lz4LastLits, and the 8 bytes that are compared
	CMPQ R13, CX
	JGT  tail
	MOVQ (SI)(R13*1), DX
	XORQ (R10)(R13*1), DX
	JNE  differ
	ADDQ $8, R13
	SUBQ $8, CX                // 16 bytes from now on

long:
	CMPQ R13, CX
	JGT  nearend
	MOVOU (SI)(R13*1), X0
	MOVOU (R10)(R13*1), X1
	PCMPEQB X1, X0
	PMOVMSKB X0, DX
	XORL $0xFFFF, DX
	JNE  differ16
	ADDQ $16, R13
	JMP  long

differ16:
	BSFL DX, DX
	ADDQ DX, R13
	JMP  sequence

nearend:
	ADDQ $8, CX

tail:
	ADDQ $8, CX                // n - lz4LastLits

byte:
	CMPQ R13, CX
	JGE  sequence
	MOVBLZX (SI)(R13*1), DX
	CMPB DX, (R10)(R13*1)
	JNE  sequence
	INCQ R13
	JMP  byte

differ:
	BSFQ DX, DX
	SHRQ $3, DX
	ADDQ DX, R13

	// The sequence: CX literals from the anchor on, then the match.
sequence:
	INCQ R10
	MOVQ R8, CX
	SUBQ R11, CX
	LEAQ -4(R9), DX            // 16 bytes may be read from the anchor on
	CMPQ R11, DX
	JGT  slow
	CMPQ CX, $15
	JGE  slow
	MOVOU (SI)(R11*1), X0
	MOVOU X0, 1(DI)
	MOVQ R13, DX
	SUBQ R8, DX
	SUBQ $4, DX
	MOVQ R13, R8               // s and the anchor
	MOVQ R13, R11
	MOVQ CX, R13
	SHLQ $4, R13
	CMPQ DX, $15
	JGE  longmatch
	ORQ  DX, R13
	MOVB R13, (DI)
	MOVW AX, 1(DI)(CX*1)
	LEAQ 3(DI)(CX*1), DI
	JMP  search

longmatch:
	ORQ  $15, R13
	MOVB R13, (DI)
	MOVW AX, 1(DI)(CX*1)
	LEAQ 3(DI)(CX*1), DI

matchlength:
	SUBQ $15, DX

matchbytes:
	CMPQ DX, $255
	JLT  matchend
	MOVB $255, (DI)
	INCQ DI
	SUBQ $255, DX
	JMP  matchbytes

matchend:
	MOVB DX, (DI)
	INCQ DI
	JMP  search

	// Many literals, or few near the end.
slow:
	MOVQ R13, DX
	SUBQ R8, DX
	SUBQ $4, DX                // the match's length, as it is written
	MOVQ DX, R13
	CMPQ DX, $15
	JLT  slowtoken
	MOVQ $15, R13

slowtoken:
	CMPQ CX, $15
	JLT  few
	ORQ  $0xF0, R13
	MOVB R13, (DI)
	INCQ DI
	LEAQ -15(CX), R13

litbytes:
	CMPQ R13, $255
	JLT  litend
	MOVB $255, (DI)
	INCQ DI
	SUBQ $255, R13
	JMP  litbytes

few:
	SHLQ $4, CX
	ORQ  CX, R13
	SHRQ $4, CX
	MOVB R13, (DI)
	JMP  copy

litend:
	MOVB R13, (DI)

copy:
	INCQ DI
	LEAQ (SI)(R11*1), R11      // from
	LEAQ (DI)(CX*1), R12       // the output after them
	LEAQ 16(R8), R13
	CMPQ R13, n+24(FP)
	JGT  exact

wide:
	CMPQ DI, R12
	JGE  copied
	MOVOU (R11), X0
	MOVOU X0, (DI)
	ADDQ $16, R11
	ADDQ $16, DI
	JMP  wide

exact:
	CMPQ DI, R12
	JGE  copied
	MOVBLZX (R11), R13
	MOVB R13, (DI)
	INCQ R11
	INCQ DI
	JMP  exact

copied:
	MOVQ R12, DI
	MOVW AX, (DI)
	ADDQ $2, DI
	LEAQ 4(R8)(DX*1), R8
	MOVQ R8, R11
	CMPQ DX, $15
	JLT  search
	JMP  matchlength
