package mlx5sim

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// The golden bytes come from the real libmlx5; see the README beside them.

type hexBytes []byte

func (h *hexBytes) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	p, err := hex.DecodeString(s)
	*h = p
	return err
}

type num64 uint64

func (n *num64) UnmarshalJSON(b []byte) error {
	v, err := strconv.ParseUint(strings.Trim(string(b), `"`), 0, 64)
	*n = num64(v)
	return err
}

type goldenSGE struct {
	Addr   num64
	Length uint32
	LKey   uint32
}

type goldenQP struct {
	Name     string
	Type     string
	QPN      uint32
	UIdx     uint32
	SQWQECnt uint32 `json:"sq_wqe_cnt"`
	RQWQECnt uint32 `json:"rq_wqe_cnt"`
	RQStride uint32 `json:"rq_stride"`
}

type goldenAH struct {
	Name         string
	DGID         hexBytes
	SGIDIndex    uint8  `json:"sgid_index"`
	HopLimit     uint8  `json:"hop_limit"`
	TrafficClass uint8  `json:"traffic_class"`
	FlowLabel    uint32 `json:"flow_label"`
	SL           uint8
	DMAC         hexBytes `json:"dmac_from_kernel"`
}

type goldenWR struct {
	Opcode     string
	SendFlags  []string `json:"send_flags"`
	SGEs       []goldenSGE
	Inline     []hexBytes
	Imm        hexBytes `json:"imm_data_wire"`
	RemoteAddr num64    `json:"remote_addr"`
	InvRKey    uint32   `json:"invalidate_rkey"`
	CompareAdd num64    `json:"compare_add"`
	Swap       num64
	RKey       uint32
	AH         string
	RemoteQPN  uint32 `json:"remote_qpn"`
	RemoteQKey uint32 `json:"remote_qkey"`
}

type goldenWQE struct {
	SQIndex   uint32 `json:"sq_index"`
	RQIndex   uint32 `json:"rq_index"`
	SRQIndex  uint32 `json:"srq_index"`
	DS        int
	WQEBBs    uint32
	Hex       hexBytes
	Unwritten [][2]int
}

// junk returns the WQE with 0xff where the library wrote nothing.
func (w *goldenWQE) junk() []byte {
	p := bytes.Clone(w.Hex)
	for _, u := range w.Unwritten {
		for i := range u[1] {
			p[u[0]+i] = 0xff
		}
	}
	return p
}

type goldenVector struct {
	Name   string
	API    string
	QP     string
	CQ     string
	SRQ    string
	WRs    []goldenWR
	Before struct {
		SQCurPost uint32 `json:"sq_cur_post"`
		RQHead    uint32 `json:"rq_head"`
		ConsIndex uint32 `json:"cons_index"`
		CQECnt    uint32 `json:"cqe_cnt"`
	}
	After struct {
		SQCurPost uint32 `json:"sq_cur_post"`
		DBRec     hexBytes
	}
	WQEs []goldenWQE
	UAR  *struct {
		Hex hexBytes
	}
	CQEs       []hexBytes
	RecvBuffer hexBytes `json:"recv_buffer"`

	// create_srq
	WQECount     uint32 `json:"wqe_count"`
	Stride       uint32
	BufAllocSize uint32                 `json:"buf_alloc_size"`
	KernelMaxWR  struct{ Value uint32 } `json:"kernel_max_wr"`
	KernelMaxSGE struct{ Value uint32 } `json:"kernel_max_sge"`
	WCs          []struct {
		StatusName string `json:"status_name"`
		WC         struct {
			WRID      num64 `json:"wr_id"`
			Opcode    int
			ByteLen   uint32   `json:"byte_len"`
			Imm       hexBytes `json:"imm_data_or_rkey_raw"`
			QPNum     uint32   `json:"qp_num"`
			SrcQP     uint32   `json:"src_qp"`
			Flags     int      `json:"wc_flags"`
			SL        int
			VendorErr int `json:"vendor_err"`
		}
		Unset []string
	}
}

type goldenSRQ struct {
	Name     string
	WQECount uint32 `json:"wqe_count"`
	Stride   uint32
	Next     []uint16 `json:"initial_next_index"`
}

type goldenFile struct {
	QPs     []goldenQP
	SRQs    []goldenSRQ
	AHs     []goldenAH
	Vectors []goldenVector
}

func loadGolden(t testing.TB, name string) *goldenFile {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "testdata", "golden", "mlx5", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var g goldenFile
	if err := json.Unmarshal(b, &g); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if len(g.Vectors) == 0 {
		t.Fatalf("%s: no vectors", name)
	}
	return &g
}

func (g *goldenFile) qp(name string) goldenQP {
	for _, q := range g.QPs {
		if q.Name == name {
			return q
		}
	}
	return goldenQP{}
}

func (g *goldenFile) ah(name string) *goldenAH {
	for i := range g.AHs {
		if g.AHs[i].Name == name {
			return &g.AHs[i]
		}
	}
	return nil
}

var goldenOpcodes = map[string]uint8{
	"SEND": opSend, "SEND_WITH_IMM": opSendImm, "RDMA_WRITE": opWrite, "RDMA_WRITE_WITH_IMM": opWriteImm, "RDMA_READ": opRead,
	"ATOMIC_CMP_AND_SWP": opCmpSwap, "ATOMIC_FETCH_AND_ADD": opFetchAdd, "SEND_WITH_INV": opSendInv, "LOCAL_INV": opUMR,
}

// TestDecodeReadsWhatLibmlx5Wrote puts every WQE of the send vectors into a
// ring of the recorded size, with junk where the library left stale bytes, and
// compares what the engine fetches with the request.
func TestDecodeReadsWhatLibmlx5Wrote(t *testing.T) {
	for _, name := range []string{"ud_send", "ud_send_wr_api", "ud_send_ib_link", "rc_send", "rc_send_wr_api", "send_wrap", "send_lists",
		"bf_modes_default", "bf_modes_prefer_bf_0", "bf_modes_shut_up_bf_1", "bf_modes_static_uar"} {
		t.Run(name, func(t *testing.T) {
			g := loadGolden(t, name)
			decoded := 0
			for _, v := range g.Vectors {
				t.Run(v.Name, func(t *testing.T) {
					checkGoldenSend(t, g, &v, &decoded)
				})
			}
			t.Logf("%d WQEs decoded", decoded)
			if decoded == 0 {
				t.Error("no WQE was decoded")
			}
		})
	}
}

func checkGoldenSend(t *testing.T, g *goldenFile, v *goldenVector, decoded *int) {
	gq := g.qp(v.QP)
	r := newRig(t)
	d := r.device("10.0.0.1")
	n := r.node(d)
	q := n.qp(gq.Type, qpOpts{sqSize: gq.SQWQECnt, qpn: gq.QPN})
	q.attr.state = stateRTS
	at := v.Before.SQCurPost
	q.sq.pi, q.sq.next, q.sq.ci = at, at, at
	for i := range v.WQEs {
		p := v.WQEs[i].junk()
		for len(p) > 0 {
			copy(r.at(q.sq.buf+uint64(at&(q.sq.size-1))*wqebbBytes, wqebbBytes), p)
			p, at = p[wqebbBytes:], at+1
		}
	}
	if len(v.After.DBRec) == 8 {
		copy(r.at(q.dbrec, 8), v.After.DBRec)
		if !q.syncSQ() || q.sq.pi != at {
			t.Fatalf("doorbell record %x: pi %d, want %d", v.After.DBRec, q.sq.pi, at)
		}
	}
	var op sendOp
	for i := range v.WQEs {
		s := q.fetch(&op)
		if op.wqebbs != v.WQEs[i].WQEBBs {
			t.Errorf("WQE %d: %d WQEBBs, want %d", i, op.wqebbs, v.WQEs[i].WQEBBs)
		}
		wr := &v.WRs[i]
		want, known := goldenOpcodes[wr.Opcode]
		if !known || s != synOK {
			t.Fatalf("%s: %v", wr.Opcode, s)
		}
		*decoded++
		if op.opcode != want {
			t.Errorf("opcode %#x, want %#x", op.opcode, want)
		}
		compareGoldenOp(t, g, &op, wr, gq.Name == "rc_sig_all", v.API == "ibv_wr")
		checkInline(t, q, &op, wr)
		q.sq.next = op.end()
	}
	if q.sq.next != v.After.SQCurPost && len(v.WQEs) > 0 {
		t.Errorf("ends at %d, want %d", q.sq.next, v.After.SQCurPost)
	}
	if v.UAR != nil && len(v.WQEs) > 0 && v.Name != "ud_err_inline_too_long" { // see README: oddities
		if qpn := be.Uint32(v.UAR.Hex[4:]) >> 8; qpn != gq.QPN {
			t.Errorf("doorbell names QP %d, want %d", qpn, gq.QPN)
		}
	}
}

func compareGoldenOp(t *testing.T, g *goldenFile, op *sendOp, wr *goldenWR, sigAll, wrAPI bool) {
	t.Helper()
	flags := strings.Join(wr.SendFlags, " ")
	if op.signaled != (sigAll || strings.Contains(flags, "SIGNALED")) || op.solicited != strings.Contains(flags, "SOLICITED") {
		t.Errorf("signaled %v solicited %v, want %q", op.signaled, op.solicited, flags)
	}
	if strings.Contains(flags, "FENCE") && !op.fence {
		t.Error("the fence is lost")
	}
	if op.hasImm() && op.imm != be.Uint32(wr.Imm) {
		t.Errorf("imm %#x, want %x", op.imm, wr.Imm)
	}
	switch op.opcode {
	case opCmpSwap:
		if op.compare != uint64(wr.CompareAdd) || op.swapAdd != uint64(wr.Swap) {
			t.Errorf("compare %#x swap %#x, want %#x %#x", op.compare, op.swapAdd, wr.CompareAdd, wr.Swap)
		}
	case opFetchAdd:
		if op.swapAdd != uint64(wr.CompareAdd) {
			t.Errorf("add %#x, want %#x", op.swapAdd, wr.CompareAdd)
		}
	case opSendInv, opUMR:
		if op.imm != wr.InvRKey {
			t.Errorf("key %#x, want %#x", op.imm, wr.InvRKey)
		}
	}
	if op.raddr != uint64(wr.RemoteAddr) || op.rkey != wr.RKey {
		t.Errorf("remote %#x/%#x, want %#x/%#x", op.raddr, op.rkey, wr.RemoteAddr, wr.RKey)
	}
	if wr.AH != "" {
		a := g.ah(wr.AH)
		if a == nil {
			t.Fatalf("no AH %q", wr.AH)
		}
		if op.av.qpn != wr.RemoteQPN || op.av.qkey != wr.RemoteQKey {
			t.Errorf("to QP %#x qkey %#x, want %#x %#x", op.av.qpn, op.av.qkey, wr.RemoteQPN, wr.RemoteQKey)
		}
		got := op.av.addressVector
		if be.Uint16(a.DMAC) != 0 { // Ethernet; the InfiniBand vectors address by LID
			want := addressVector{dgid: [16]byte(a.DGID), flowLabel: a.FlowLabel, sgidIndex: a.SGIDIndex,
				hopLimit: a.HopLimit, trafficClass: a.TrafficClass, sl: a.SL & 7, isGlobal: true}
			if got != want || !bytes.Equal(op.av.dmac[:], a.DMAC) {
				t.Errorf("address\n got %+v %x\nwant %+v %x", got, op.av.dmac, want, a.DMAC)
			}
		}
	}
	var length uint64
	var sges []goldenSGE
	for _, s := range wr.SGEs {
		if op.isAtomic() && !wrAPI {
			s.Length = 8 // ibv_post_send says so, whatever the caller did
		}
		if s.Length != 0 {
			sges = append(sges, s)
			length += uint64(s.Length)
		}
	}
	for _, b := range wr.Inline {
		length += uint64(len(b))
	}
	if op.length != length {
		t.Errorf("%d bytes, want %d", op.length, length)
	}
	if len(wr.Inline) > 0 {
		return
	}
	if len(op.sges) != len(sges) {
		t.Fatalf("%d SGEs, want %d", len(op.sges), len(sges))
	}
	for i, s := range sges {
		if op.sges[i] != (dataSeg{addr: uint64(s.Addr), n: s.Length, lkey: s.LKey}) {
			t.Errorf("SGE %d: %+v, want %+v", i, op.sges[i], s)
		}
	}
}

func checkInline(t *testing.T, q *qp, op *sendOp, wr *goldenWR) {
	t.Helper()
	if len(wr.Inline) == 0 {
		return
	}
	var want []byte
	for _, b := range wr.Inline {
		want = append(want, b...)
	}
	var kept sendOp
	kept.copyFrom(op)
	for _, o := range []*sendOp{op, &kept} {
		got := make([]byte, len(want))
		if s := q.gather(o, 0, got); s != synOK || !bytes.Equal(got, want) {
			t.Errorf("inline data: %v\n got %x\nwant %x", s, got, want)
		}
		for off := range want { // from every offset
			if s := q.gather(o, uint64(off), got[off:]); s != synOK || !bytes.Equal(got[off:], want[off:]) {
				t.Fatalf("inline data from %d: %v", off, s)
			}
		}
	}
}

func TestTakeRecvReadsWhatLibmlx5Wrote(t *testing.T) {
	g := loadGolden(t, "recv")
	seen := 0
	for _, v := range g.Vectors {
		t.Run(v.Name, func(t *testing.T) {
			gq := g.qp(v.QP)
			r := newRig(t)
			n := r.node(r.device("10.0.0.1"))
			q := n.qp(gq.Type, qpOpts{rqSize: gq.RQWQECnt, rqStride: gq.RQStride})
			q.attr.state = stateRTS
			q.rq.pi, q.rq.ci = v.Before.RQHead, v.Before.RQHead
			for i := range v.WQEs {
				copy(r.at(q.rq.buf+uint64(v.WQEs[i].RQIndex*q.rq.stride), q.rq.stride), v.WQEs[i].junk())
			}
			if len(v.After.DBRec) == 8 {
				copy(r.at(q.dbrec, 8), v.After.DBRec)
			}
			for i := range v.WQEs {
				w, st := q.takeRecv()
				if st != recvOK {
					t.Fatalf("receive %d: %v", i, st)
				}
				var want []dataSeg
				for _, s := range v.WRs[i].SGEs {
					if s.Length != 0 {
						want = append(want, dataSeg{addr: uint64(s.Addr), n: s.Length, lkey: s.LKey})
					}
				}
				if len(want) != len(w.sges) || w.index != uint16(v.Before.RQHead+uint32(i)) {
					t.Fatalf("receive %d: %+v, want %+v", i, w, want)
				}
				for k := range want {
					if want[k] != w.sges[k] {
						t.Errorf("receive %d: SGE %+v, want %+v", i, w.sges[k], want[k])
					}
				}
				seen++
			}
			if _, st := q.takeRecv(); len(v.After.DBRec) == 8 && st != recvEmpty {
				t.Errorf("one more receive: %v", st)
			}
		})
	}
	if seen == 0 {
		t.Error("no receive was read")
	}
}

var goldenSyndromes = map[string]syndrome{
	"LOC_LEN_ERR": synLocalLen, "LOC_QP_OP_ERR": synLocalQPOp, "LOC_PROT_ERR": synLocalProt, "WR_FLUSH_ERR": synFlush, "MW_BIND_ERR": synBind,
	"BAD_RESP_ERR": synBadResp, "LOC_ACCESS_ERR": synLocalAccess, "REM_INV_REQ_ERR": synRemInvReq, "REM_ACCESS_ERR": synRemAccess,
	"REM_OP_ERR": synRemOp, "RETRY_EXC_ERR": synRetryExc, "RNR_RETRY_EXC_ERR": synRNRExc,
}

// makeCQE lets a CQ make the entry, and returns how many bytes of data it has
// to carry: where the recorded one did, this one gets what the library then put
// into the receive buffers.
func (v *goldenVector) makeCQE(t *testing.T, e *cqe, byteLen uint32, raw []byte) (b [cqeBytes]byte, n int) {
	r := newRig(t)
	c := r.node(r.device("10.0.0.1")).cq(4)
	if raw[cqeBytes-1]&cqeInline32 != 0 {
		n = int(byteLen)
		for _, x := range v.RecvBuffer {
			if x != 0xcc && int(e.inline) < n { // the prefill between the SGEs
				r.fab.eng.inline[e.inline] = x
				e.inline++
			}
		}
		if int(e.inline) != n {
			t.Fatalf("%s: %d bytes in the receive buffers, want %d", v.Name, e.inline, n)
		}
	}
	if c.add(e); c.pi != 1 {
		t.Fatal("not written")
	}
	return c.eng.entry, n
}

// TestCQEIsWhatLibmlx5Reads builds the CQE from the completion that the
// library made of a recorded CQE, and compares the bytes that it read.
func TestCQEIsWhatLibmlx5Reads(t *testing.T) {
	g := loadGolden(t, "cqe")
	built, skipped := 0, map[string]int{}
	for _, v := range g.Vectors {
		if len(v.CQEs) != len(v.WCs) {
			skipped["polled in parts, or not polled"]++
			continue
		}
		for i, raw := range v.CQEs {
			raw = raw[len(raw)-cqeBytes:]
			wc := &v.WCs[i]
			e := cqe{uidx: g.qp(v.QP).UIdx, qpn: wc.WC.QPNum, counter: uint16(wc.WC.WRID), byteCount: wc.WC.ByteLen, srcQPN: wc.WC.SrcQP}
			mask := map[int]byte{33: 0xff, 34: 0xff, 35: 0xff, 57: 0xff, 58: 0xff, 59: 0xff, 60: 0xff, 61: 0xff, 63: 0xfe}
			if g.qp(v.QP).Name == "" { // not in this copy's table
				delete(mask, 33)
				delete(mask, 34)
				delete(mask, 35)
			}
			requester := wc.WC.WRID>>56 == 0x7b
			if requester && uint32(raw[56]) == 0x0a || wc.StatusName != "SUCCESS" {
				mask[56] = 0xff
			}
			e.wqeOpcode = map[bool]uint8{true: opSend}[requester]
			if wc.StatusName != "SUCCESS" {
				s, ok := goldenSyndromes[wc.StatusName]
				if !ok || wc.WC.VendorErr == 0 {
					skipped[wc.StatusName]++
					continue
				}
				e.syn = s
				e.opcode = map[bool]uint8{true: cqeReqErr, false: cqeRespErr}[requester]
				mask[55] = 0xff
			} else if requester {
				op := uint8(raw[56])
				e.wqeOpcode = map[int]uint8{0: opSend, 1: opWrite, 2: opRead, 3: opCmpSwap, 4: opFetchAdd, 6: opUMR}[wc.WC.Opcode]
				switch v.Name { // the library tells these no more from SEND
				case "rc_req_nop":
					e.wqeOpcode = opNOP
				case "rc_req_send_inval":
					e.wqeOpcode = opSendInv
				}
				if wc.WC.Flags&2 != 0 {
					e.wqeOpcode |= 1
				}
				e.opcode = cqeReq
				mask[56] = 0xff
				if op == opRead { // of an atomic the library knows that it is 8
					for k := 44; k < 48; k++ {
						mask[k] = 0xff
					}
				}
			} else {
				e.opcode = cqeRespSend
				if wc.WC.Flags&2 != 0 {
					e.opcode, e.imm = cqeRespSendImm, be.Uint32(wc.WC.Imm)
					mask[36], mask[37], mask[38], mask[39] = 0xff, 0xff, 0xff, 0xff
				}
				if wc.WC.Flags&8 != 0 {
					e.opcode = cqeRespSendInv
				}
				if wc.WC.Opcode == 129 {
					e.opcode = cqeRespWrImm
				}
				for k := 44; k < 48; k++ {
					mask[k] = 0xff
				}
				if raw[cqeBytes-1]&cqeInline32 == 0 { // else the data stand there
					mask[25], mask[26], mask[27] = 0xff, 0xff, 0xff
					e.grh = wc.WC.Flags&1 != 0
					if e.grh != (raw[24]>>4&3 != 0) {
						t.Errorf("%s: GRH bits", v.Name)
					}
				}
			}
			b, n := v.makeCQE(t, &e, wc.WC.ByteLen, raw)
			for k := range n {
				mask[k] = 0xff
			}
			for k, m := range mask {
				if b[k]&m != raw[k]&m {
					t.Errorf("%s: byte %d is %#x, want %#x\n got %x\nread %x", v.Name, k, b[k]&m, raw[k]&m, b, raw)
				}
			}
			if e.opcode != cqeReq && e.syn == synOK && n == 0 && (b[24]>>4&3 != 0) != e.grh {
				t.Errorf("%s: GRH bits of %x", v.Name, b)
			}
			built++
		}
	}
	t.Logf("%d CQEs compared; skipped %v", built, skipped)
	if built < 30 {
		t.Errorf("only %d CQEs compared", built)
	}
}
