#include "textflag.h"

// Stores to write-back memory are seen in program order, so WQE and doorbell
// record need no fence between them. A UAR page is mapped write-combining or
// uncached: SFENCE keeps its stores behind the record's, and pushes them out.

// func ring(rec *uint32, count uint32, reg *byte, word uint64)
TEXT ·ring(SB), NOSPLIT, $0-32
	MOVQ rec+0(FP), AX
	MOVL count+8(FP), BX
	MOVQ reg+16(FP), CX
	MOVQ word+24(FP), DX
	MOVL BX, (AX)
	SFENCE
	MOVQ DX, (CX)
	SFENCE
	RET

// func ringBlueFlame(rec *uint32, count uint32, reg, wqe *byte, blocks uint32, start, end *byte)
TEXT ·ringBlueFlame(SB), NOSPLIT, $0-56
	MOVQ rec+0(FP), AX
	MOVL count+8(FP), BX
	MOVQ reg+16(FP), DI
	MOVQ wqe+24(FP), SI
	MOVL blocks+32(FP), CX
	MOVQ start+40(FP), R8
	MOVQ end+48(FP), R9
	MOVL BX, (AX)
	SFENCE

block:
	MOVOU 0(SI), X0
	MOVOU 16(SI), X1
	MOVOU 32(SI), X2
	MOVOU 48(SI), X3
	MOVOU X0, 0(DI)
	MOVOU X1, 16(DI)
	MOVOU X2, 32(DI)
	MOVOU X3, 48(DI)
	ADDQ  $64, SI
	ADDQ  $64, DI
	CMPQ  SI, R9
	CMOVQEQ R8, SI
	DECL  CX
	JNZ   block
	SFENCE
	RET
