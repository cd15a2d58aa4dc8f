package abi_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/rrppcc-go/rrppcc/internal/abi/abitest"
)

// qpMasks are constants of the kernel's rdma/ib_verbs.h, which user space does
// not get: libibverbs repeats them.
var qpMasks = strings.Fields(`IB_QP_STATE IB_QP_CUR_STATE IB_QP_EN_SQD_ASYNC_NOTIFY IB_QP_ACCESS_FLAGS IB_QP_PKEY_INDEX
	IB_QP_PORT IB_QP_QKEY IB_QP_AV IB_QP_PATH_MTU IB_QP_TIMEOUT IB_QP_RETRY_CNT IB_QP_RNR_RETRY IB_QP_RQ_PSN
	IB_QP_MAX_QP_RD_ATOMIC IB_QP_ALT_PATH IB_QP_MIN_RNR_TIMER IB_QP_SQ_PSN IB_QP_MAX_DEST_RD_ATOMIC IB_QP_PATH_MIG_STATE
	IB_QP_CAP IB_QP_DEST_QPN`)

// otherMasks are of the same kind, with the names that libibverbs has for them.
var otherMasks = map[string]string{
	"IB_SRQ_MAX_WR":      "IBV_SRQ_MAX_WR",
	"IB_SRQ_LIMIT":       "IBV_SRQ_LIMIT",
	"IB_MR_REREG_TRANS":  "IBV_REREG_MR_CHANGE_TRANSLATION",
	"IB_MR_REREG_PD":     "IBV_REREG_MR_CHANGE_PD",
	"IB_MR_REREG_ACCESS": "IBV_REREG_MR_CHANGE_ACCESS",
}

func TestMatchesKernelHeaders(t *testing.T) {
	skip := make(map[string]string)
	for _, name := range qpMasks {
		skip[name] = "not in the kernel's headers for user space; see TestMatchesLibibverbs"
	}
	for name := range otherMasks {
		skip[name] = "as above"
	}
	abitest.Run(t, abitest.Config{
		Headers: []string{"rdma/rdma_user_ioctl.h", "rdma/rdma_user_ioctl_cmds.h", "rdma/ib_user_ioctl_cmds.h",
			"rdma/ib_user_ioctl_verbs.h", "rdma/ib_user_verbs.h", "rdma/rdma_netlink.h"},
		C: map[string]string{
			"Ib_uverbs_odp_caps.Rc_odp_caps": "per_transport_caps.rc_odp_caps",
			"Ib_uverbs_odp_caps.Uc_odp_caps": "per_transport_caps.uc_odp_caps",
			"Ib_uverbs_odp_caps.Ud_odp_caps": "per_transport_caps.ud_odp_caps",
			"UVERBS_ID_DRIVER_NS":            "(1U << UVERBS_ID_NS_SHIFT)",
			// The header's name is the bare number.
			"IB_USER_VERBS_EX_CMD_QUERY_DEVICE": "(IB_USER_VERBS_CMD_FLAG_EXTENDED | IB_USER_VERBS_EX_CMD_QUERY_DEVICE)",
		},
		Skip: skip,
	})
}

func TestMatchesLibibverbs(t *testing.T) {
	c := make(map[string]string)
	for _, name := range qpMasks {
		c[name] = "IBV_" + strings.TrimPrefix(name, "IB_")
	}
	maps.Copy(c, otherMasks)
	abitest.Run(t, abitest.Config{Headers: []string{"infiniband/verbs.h"}, C: c, Only: slices.Collect(maps.Keys(c))})
}
