package uverbs

import (
	"fmt"

	"github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/internal/kernel"
)

// AttachMulticast has the UD QP receive what is sent to the multicast group
// gid; lid is the group's on InfiniBand, and 0 on RoCE. A QP that is attached
// must be detached before it is closed (EBUSY).
func (qp *QP) AttachMulticast(gid GID, lid uint16) error {
	return qp.multicast("attach", abi.IB_USER_VERBS_CMD_ATTACH_MCAST, gid, lid)
}

// DetachMulticast ends AttachMulticast.
func (qp *QP) DetachMulticast(gid GID, lid uint16) error {
	return qp.multicast("detach", abi.IB_USER_VERBS_CMD_DETACH_MCAST, gid, lid)
}

func (qp *QP) multicast(op string, write uint32, gid GID, lid uint16) error {
	object := fmt.Sprintf("qp to multicast group %s", gid)
	qp.mu.Lock()
	defer qp.mu.Unlock()
	if qp.closed {
		return opError(op, object, ErrClosed)
	}
	in := &abi.Ib_uverbs_attach_mcast{Gid: gid, Qp_handle: qp.handle, Mlid: lid}
	c := qp.pd.ctx
	return opError(op, object, c.run(c.writeCommand(write, kernel.Bytes(in), nil)))
}
