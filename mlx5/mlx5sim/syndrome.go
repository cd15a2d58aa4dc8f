package mlx5sim

import "fmt"

// syndrome is the error code of a CQE, enum MLX5_CQE_SYNDROME_*.
type syndrome uint8

const (
	synOK          syndrome = 0x00
	synLocalLen    syndrome = 0x01
	synLocalQPOp   syndrome = 0x02
	synLocalProt   syndrome = 0x04
	synFlush       syndrome = 0x05
	synBind        syndrome = 0x06
	synBadResp     syndrome = 0x10
	synLocalAccess syndrome = 0x11
	synRemInvReq   syndrome = 0x12
	synRemAccess   syndrome = 0x13
	synRemOp       syndrome = 0x14
	synRetryExc    syndrome = 0x15
	synRNRExc      syndrome = 0x16
)

var syndromeNames = map[syndrome]string{
	synOK: "ok", synLocalLen: "local length", synLocalQPOp: "local QP operation", synLocalProt: "local protection",
	synFlush: "flushed", synBind: "memory window bind", synBadResp: "bad response", synLocalAccess: "local access", synRemInvReq: "remote invalid request",
	synRemAccess: "remote access", synRemOp: "remote operation", synRetryExc: "retry exceeded", synRNRExc: "RNR retry exceeded",
}

func (s syndrome) String() string {
	if n, ok := syndromeNames[s]; ok {
		return n
	}
	return fmt.Sprintf("syndrome(%#02x)", uint8(s))
}

// vendor is the vendor syndrome beside s. The vendor does not document them;
// these are the values that ConnectX adapters show in the field for the
// commonest cause of each error.
func (s syndrome) vendor() uint8 {
	switch s {
	case synLocalLen:
		return 0x69
	case synLocalQPOp:
		return 0x68
	case synLocalProt:
		return 0x51
	case synFlush:
		return 0xf9
	case synBind:
		return 0x78
	case synLocalAccess:
		return 0x53
	case synRemInvReq:
		return 0x8a
	case synRemAccess:
		return 0x88
	case synRemOp:
		return 0x89
	case synRetryExc:
		return 0x81
	case synRNRExc:
		return 0x87
	}
	return 0
}
