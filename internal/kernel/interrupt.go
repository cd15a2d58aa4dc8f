package kernel

import (
	"encoding/binary"

	"github.com/rrppcc-go/rrppcc/internal/abi"
)

// maxInterrupts bounds how often an interrupted command is issued again.
const maxInterrupts = 100

// repeatable reports whether a command that failed with EINTR may be issued
// again as it is. Go's scheduler interrupts threads with signals of its own
// (SIGURG), so a caller cannot be left with the errno where it is harmless: the
// kernel answers it, for example, when the first on-demand MR of a process
// finds a signal pending.
//
// Queries change nothing. A create that fails has been rolled back by the
// uverbs core, which aborts all new objects of a command that fails, and a
// destroy that fails has left its object. Everything else may have done half
// of its work (MODIFY_QP, RESIZE_CQ, REREG_MR, the doorbell POST_SEND, the
// driver's own methods): that EINTR is the caller's to judge.
func repeatable(cmd []byte) bool {
	if len(cmd) < hdrSize {
		return false
	}
	object, method := binary.NativeEndian.Uint16(cmd[2:]), binary.NativeEndian.Uint16(cmd[4:])
	if object >= abi.UVERBS_ID_DRIVER_NS || method >= abi.UVERBS_ID_DRIVER_NS {
		return false
	}
	switch object {
	case abi.UVERBS_OBJECT_DEVICE:
		if method == abi.UVERBS_METHOD_INVOKE_WRITE {
			return repeatableWrite(cmd)
		}
		return true // GET_CONTEXT is a create, the others are queries
	case abi.UVERBS_OBJECT_PD, abi.UVERBS_OBJECT_AH, abi.UVERBS_OBJECT_MW:
		return method == 0 // destroy is all that they have
	case abi.UVERBS_OBJECT_CQ, abi.UVERBS_OBJECT_QP, abi.UVERBS_OBJECT_SRQ:
		return method == abi.UVERBS_METHOD_CQ_CREATE || method == abi.UVERBS_METHOD_CQ_DESTROY // the same numbers in all
	case abi.UVERBS_OBJECT_MR:
		return method == abi.UVERBS_METHOD_MR_DESTROY || method == abi.UVERBS_METHOD_REG_DMABUF_MR
	case abi.UVERBS_OBJECT_ASYNC_EVENT:
		return method == abi.UVERBS_METHOD_ASYNC_EVENT_ALLOC
	}
	return false
}

func repeatableWrite(cmd []byte) bool {
	for attrs := cmd[hdrSize:]; len(attrs) >= attrSize; attrs = attrs[attrSize:] {
		if binary.NativeEndian.Uint16(attrs) != abi.UVERBS_ATTR_WRITE_CMD {
			continue
		}
		switch uint32(binary.NativeEndian.Uint64(attrs[8:])) &^ abi.IB_USER_VERBS_CMD_FLAG_EXTENDED {
		case abi.IB_USER_VERBS_CMD_QUERY_DEVICE, abi.IB_USER_VERBS_CMD_QUERY_PORT, abi.IB_USER_VERBS_CMD_QUERY_QP,
			abi.IB_USER_VERBS_CMD_ALLOC_PD, abi.IB_USER_VERBS_CMD_REG_MR, abi.IB_USER_VERBS_CMD_CREATE_AH,
			abi.IB_USER_VERBS_CMD_CREATE_COMP_CHANNEL, abi.IB_USER_VERBS_CMD_QUERY_SRQ, abi.IB_USER_VERBS_CMD_ALLOC_MW:
			return true
		}
		return false
	}
	return false
}
