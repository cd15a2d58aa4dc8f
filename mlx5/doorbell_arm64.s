#include "textflag.h"

// DMB/DSB options: OSHLD = 1 and OSHST = 2 order loads and stores of the outer
// shareable domain, which the device is in; ST = 14 waits for stores of the
// full system to complete, which empties the write-combining buffers.

// func ring(rec *uint32, count uint32, reg *byte, word uint64)
TEXT ·ring(SB), NOSPLIT, $0-32
	MOVD  rec+0(FP), R0
	MOVWU count+8(FP), R1
	MOVD  reg+16(FP), R2
	MOVD  word+24(FP), R3
	DMB   $2
	MOVW  R1, (R0)
	DSB   $14
	MOVD  R3, (R2)
	DSB   $14
	RET

// func ringBlueFlame(rec *uint32, count uint32, reg, wqe *byte, blocks uint32, start, end *byte)
TEXT ·ringBlueFlame(SB), NOSPLIT, $0-56
	MOVD  rec+0(FP), R0
	MOVWU count+8(FP), R1
	MOVD  reg+16(FP), R2
	MOVD  wqe+24(FP), R3
	MOVWU blocks+32(FP), R4
	MOVD  start+40(FP), R5
	MOVD  end+48(FP), R6
	DMB   $2
	MOVW  R1, (R0)
	DSB   $14

block:
	VLD1.P 64(R3), [V0.D2, V1.D2, V2.D2, V3.D2]
	VST1.P [V0.D2, V1.D2, V2.D2, V3.D2], 64(R2)
	CMP    R6, R3
	CSEL   EQ, R5, R3, R3
	SUBW   $1, R4, R4
	CBNZW  R4, block
	DSB    $14
	RET

// func toDevice()
TEXT ·toDevice(SB), NOSPLIT, $0-0
	DMB $2
	RET

// func fromDevice()
TEXT ·fromDevice(SB), NOSPLIT, $0-0
	DMB $1
	RET
