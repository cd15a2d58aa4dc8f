package verbstest

import (
	"github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/internal/kernel"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// handleCount is how many objects of each kind a context has.
type handleCount struct{ PD, CQ, QP, SRQ, AH, MR, MW uint32 }

// countHandles asks the kernel, by INFO_HANDLES.
func countHandles(ctx *uverbs.Context) (n handleCount, err error) {
	for object, v := range map[uint16]*uint32{
		abi.UVERBS_OBJECT_PD: &n.PD, abi.UVERBS_OBJECT_CQ: &n.CQ, abi.UVERBS_OBJECT_QP: &n.QP, abi.UVERBS_OBJECT_SRQ: &n.SRQ,
		abi.UVERBS_OBJECT_AH: &n.AH, abi.UVERBS_OBJECT_MR: &n.MR, abi.UVERBS_OBJECT_MW: &n.MW,
	} {
		out := new(struct{ total, list uint32 })
		cmd := kernel.NewCommand(ctx.Device().DriverID(), abi.UVERBS_OBJECT_DEVICE, abi.UVERBS_METHOD_INFO_HANDLES)
		cmd.Const(abi.UVERBS_ATTR_INFO_OBJECT_ID, uint64(object))
		cmd.Out(abi.UVERBS_ATTR_INFO_TOTAL_HANDLES, kernel.Bytes(&out.total))
		cmd.Out(abi.UVERBS_ATTR_INFO_HANDLES_LIST, kernel.Bytes(&out.list))
		if err := cmd.Run(ctx.Kernel()); err != nil {
			return n, err
		}
		*v = out.total
	}
	return n, nil
}
