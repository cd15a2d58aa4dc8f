package uverbs

import (
	"fmt"
	"strings"
	"testing"

	"github.com/rrppcc-go/rrppcc/internal/abi/abitest"
)

func values[T ~uint8 | ~uint32](consts ...T) []int64 {
	all := make([]int64, len(consts))
	for i, c := range consts {
		all[i] = int64(c)
	}
	return all
}

func TestValuesMatchLibibverbs(t *testing.T) {
	type pair struct {
		c       string
		goValue int64
	}
	var pairs []pair
	add := func(prefix, names string, values ...int64) {
		t.Helper()
		list := strings.Fields(names)
		if len(list) != len(values) {
			t.Fatalf("%s: %d names for %d values", prefix, len(list), len(values))
		}
		for i, name := range list {
			pairs = append(pairs, pair{prefix + name, values[i]})
		}
	}
	add("IBV_WC_", `SUCCESS LOC_LEN_ERR LOC_QP_OP_ERR LOC_EEC_OP_ERR LOC_PROT_ERR WR_FLUSH_ERR MW_BIND_ERR BAD_RESP_ERR
		LOC_ACCESS_ERR REM_INV_REQ_ERR REM_ACCESS_ERR REM_OP_ERR RETRY_EXC_ERR RNR_RETRY_EXC_ERR LOC_RDD_VIOL_ERR REM_INV_RD_REQ_ERR
		REM_ABORT_ERR INV_EECN_ERR INV_EEC_STATE_ERR FATAL_ERR RESP_TIMEOUT_ERR GENERAL_ERR`,
		values(WCSuccess, WCLocLenErr, WCLocQPOpErr, WCLocEECOpErr, WCLocProtErr, WCWRFlushErr, WCMWBindErr, WCBadRespErr,
			WCLocAccessErr, WCRemInvReqErr, WCRemAccessErr, WCRemOpErr, WCRetryExcErr, WCRNRRetryExcErr, WCLocRDDViolErr, WCRemInvRDReqErr,
			WCRemAbortErr, WCInvEECNErr, WCInvEECStateErr, WCFatalErr, WCRespTimeoutErr, WCGeneralErr)...)
	add("IBV_EVENT_", `CQ_ERR QP_FATAL QP_REQ_ERR QP_ACCESS_ERR COMM_EST SQ_DRAINED PATH_MIG PATH_MIG_ERR DEVICE_FATAL
		PORT_ACTIVE PORT_ERR LID_CHANGE PKEY_CHANGE SM_CHANGE SRQ_ERR SRQ_LIMIT_REACHED QP_LAST_WQE_REACHED CLIENT_REREGISTER GID_CHANGE WQ_FATAL`,
		values(EventCQErr, EventQPFatal, EventQPReqErr, EventQPAccessErr, EventCommEst, EventSQDrained, EventPathMig, EventPathMigErr, EventDeviceFatal,
			EventPortActive, EventPortErr, EventLIDChange, EventPKeyChange, EventSMChange, EventSRQErr, EventSRQLimitReached, EventQPLastWQEReached,
			EventClientReregister, EventGIDChange, EventWQFatal)...)
	add("IBV_QPS_", "RESET INIT RTR RTS SQD SQE ERR",
		values(QPStateReset, QPStateInit, QPStateRTR, QPStateRTS, QPStateSQD, QPStateSQE, QPStateErr)...)
	add("IBV_QPT_", "RC UC UD", values(QPTypeRC, QPTypeUC, QPTypeUD)...)
	add("IBV_PORT_", "NOP DOWN INIT ARMED ACTIVE ACTIVE_DEFER",
		values(PortNop, PortDown, PortInit, PortArmed, PortActive, PortActiveDefer)...)
	add("IBV_MTU_", "256 512 1024 2048 4096", values(MTU256, MTU512, MTU1024, MTU2048, MTU4096)...)
	add("IBV_LINK_LAYER_", "UNSPECIFIED INFINIBAND ETHERNET", values(LinkLayerUnspecified, LinkLayerInfiniBand, LinkLayerEthernet)...)
	pairs = append(pairs, []pair{
		{"IBV_WR_RDMA_WRITE", int64(WRRDMAWrite)}, {"IBV_WR_RDMA_WRITE_WITH_IMM", int64(WRRDMAWriteWithImm)}, {"IBV_WR_SEND", int64(WRSend)},
		{"IBV_WR_SEND_WITH_IMM", int64(WRSendWithImm)}, {"IBV_WR_RDMA_READ", int64(WRRDMARead)}, {"IBV_WR_ATOMIC_CMP_AND_SWP", int64(WRAtomicCmpAndSwp)},
		{"IBV_WR_ATOMIC_FETCH_AND_ADD", int64(WRAtomicFetchAndAdd)}, {"IBV_WR_LOCAL_INV", int64(WRLocalInv)}, {"IBV_WR_BIND_MW", int64(WRBindMW)},
		{"IBV_WR_SEND_WITH_INV", int64(WRSendWithInv)},
		{"IBV_WC_SEND", int64(WCSend)}, {"IBV_WC_RDMA_WRITE", int64(WCRDMAWrite)}, {"IBV_WC_RDMA_READ", int64(WCRDMARead)},
		{"IBV_WC_COMP_SWAP", int64(WCCompSwap)}, {"IBV_WC_FETCH_ADD", int64(WCFetchAdd)}, {"IBV_WC_BIND_MW", int64(WCBindMW)},
		{"IBV_WC_LOCAL_INV", int64(WCLocalInv)}, {"IBV_WC_RECV", int64(WCRecv)}, {"IBV_WC_RECV_RDMA_WITH_IMM", int64(WCRecvRDMAWithImm)},
		{"IBV_WC_GRH", int64(WCGRH)}, {"IBV_WC_WITH_IMM", int64(WCWithImm)}, {"IBV_WC_WITH_INV", int64(WCWithInv)},
		{"IBV_SEND_FENCE", int64(SendFence)}, {"IBV_SEND_SIGNALED", int64(SendSignaled)}, {"IBV_SEND_SOLICITED", int64(SendSolicited)},
		{"IBV_SEND_INLINE", int64(SendInline)},
		{"IBV_ACCESS_LOCAL_WRITE", int64(AccessLocalWrite)}, {"IBV_ACCESS_REMOTE_WRITE", int64(AccessRemoteWrite)},
		{"IBV_ACCESS_REMOTE_READ", int64(AccessRemoteRead)}, {"IBV_ACCESS_REMOTE_ATOMIC", int64(AccessRemoteAtomic)},
		{"IBV_ACCESS_MW_BIND", int64(AccessMWBind)}, {"IBV_ACCESS_ZERO_BASED", int64(AccessZeroBased)}, {"IBV_ACCESS_ON_DEMAND", int64(AccessOnDemand)},
		{"IBV_ACCESS_HUGETLB", int64(AccessHugeTLB)}, {"IBV_ACCESS_RELAXED_ORDERING", int64(AccessRelaxedOrdering)},
		{"IBV_MW_TYPE_1", int64(MWType1)}, {"IBV_MW_TYPE_2", int64(MWType2)},
		{"IBV_QP_EN_SQD_ASYNC_NOTIFY", int64(AttrSQDAsyncNotify)}, {"IBV_SRQ_MAX_WR", int64(SRQMaxWR)}, {"IBV_SRQ_LIMIT", int64(SRQLimit)},
		{"IBV_REREG_MR_CHANGE_TRANSLATION", int64(ReregTranslation)}, {"IBV_REREG_MR_CHANGE_PD", int64(ReregPD)}, {"IBV_REREG_MR_CHANGE_ACCESS", int64(ReregAccess)},
		{"IBV_DEVICE_RESIZE_MAX_WR", int64(CapResizeMaxWR)}, {"IBV_DEVICE_CURR_QP_STATE_MOD", int64(CapCurrQPStateMod)},
		{"IBV_DEVICE_PORT_ACTIVE_EVENT", int64(CapPortActiveEvent)}, {"IBV_DEVICE_RC_RNR_NAK_GEN", int64(CapRCRNRNAKGen)},
		{"IBV_DEVICE_SRQ_RESIZE", int64(CapSRQResize)}, {"IBV_DEVICE_MEM_WINDOW", int64(CapMemWindow)},
		{"IBV_DEVICE_MEM_MGT_EXTENSIONS", int64(CapMemMgtExtensions)}, {"IBV_DEVICE_MEM_WINDOW_TYPE_2A", int64(CapMemWindowType2A)},
		{"IBV_DEVICE_MEM_WINDOW_TYPE_2B", int64(CapMemWindowType2B)},
		{"IBV_GID_TYPE_IB", int64(GIDTypeIB)}, {"IBV_GID_TYPE_ROCE_V1", int64(GIDTypeRoCEv1)}, {"IBV_GID_TYPE_ROCE_V2", int64(GIDTypeRoCEv2)},
	}...)
	exprs := make([]string, len(pairs))
	for i, p := range pairs {
		exprs[i] = p.c
	}
	for i, v := range abitest.Eval(t, []string{"infiniband/verbs.h"}, exprs) {
		if v != pairs[i].goValue {
			t.Errorf("%s: libibverbs has %d, this package %d", pairs[i].c, v, pairs[i].goValue)
		}
	}
}

func TestEveryValueHasAName(t *testing.T) {
	for _, tt := range []struct {
		last  int
		name  func(i int) string
		other string // an unknown value's name has its type in front
	}{
		{int(WCGeneralErr), func(i int) string { return WCStatus(i).String() }, "WCStatus("},
		{int(EventWQFatal), func(i int) string { return EventType(i).String() }, "EventType("},
		{int(QPStateErr), func(i int) string { return QPState(i).String() }, "QPState("},
		{int(PortActiveDefer), func(i int) string { return PortState(i).String() }, "PortState("},
		{int(WRSendWithInv), func(i int) string { return WROpcode(i).String() }, "WROpcode("},
		{int(GIDTypeRoCEv2), func(i int) string { return GIDType(i).String() }, "GIDType("},
	} {
		seen := make(map[string]bool)
		for i := range tt.last + 1 {
			name := tt.name(i)
			if name == "" || seen[name] || strings.Contains(name, "(") {
				t.Errorf("%d of %s...): %q", i, tt.other, name)
			}
			seen[name] = true
		}
		if got, want := tt.name(tt.last+1), fmt.Sprintf("%s%d)", tt.other, tt.last+1); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestMTUInBytes(t *testing.T) {
	for m, want := range map[MTU]int{0: 0, MTU256: 256, MTU1024: 1024, MTU4096: 4096, 6: 0, 255: 0} {
		if got := m.Bytes(); got != want {
			t.Errorf("MTU code %d: %d bytes, want %d", m, got, want)
		}
	}
}
