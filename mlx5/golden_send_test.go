package mlx5

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// overheadLib is what libmlx5 reserves in an RC send queue for LOCAL_INV and
// BIND_MW: 16 control, 48 UMR control, 64 mkey context, 64 KLMs. The vectors'
// queues wrap where that makes them wrap.
const overheadLib = 192

func (c goldenCap) cap() uverbs.QPCap {
	return uverbs.QPCap{MaxSendWR: c.MaxSendWR, MaxRecvWR: c.MaxRecvWR, MaxSendSGE: c.MaxSendSGE, MaxRecvSGE: c.MaxRecvSGE, MaxInline: c.MaxInline}
}

// goldenRig opens a context in the state that a file was recorded in.
func goldenRig(t *testing.T, f *goldenFile) *rig {
	k := newFakeKernel(t)
	for name, v := range f.Env {
		switch name {
		case "MLX5SHIM_STATIC_UAR":
			k.ucontext, _ = hex.DecodeString(ucontextStatic)
		case "MLX5SHIM_IB":
			k.link = kernelInfiniBand
		default:
			t.Setenv(name, v)
		}
	}
	if slices.ContainsFunc(f.Commands, func(c goldenCommand) bool { return c.Via == "write" }) {
		k.ucontext, _ = hex.DecodeString(ucontextStatic) // what a kernel without ioctls has
	}
	macs := make(map[[16]byte][6]byte)
	for _, a := range f.AHs {
		if len(a.DMAC) == 6 {
			macs[[16]byte(a.DGID)] = [6]byte(a.DMAC)
		}
	}
	k.dmac = func(d [16]byte) [6]byte { return macs[d] }
	return openRig(t, k)
}

// goldenQPs creates the file's QPs, in order, in libmlx5's sizes.
func goldenQPs(t *testing.T, r *rig, list []goldenQP, cqDepth int) map[string]*qp {
	qps := make(map[string]*qp)
	for _, g := range list {
		typ, overhead := uverbs.QPTypeUD, uint32(overheadUD)
		switch g.Type {
		case "RC":
			typ, overhead = uverbs.QPTypeRC, overheadLib
		case "UC":
			typ, overhead = uverbs.QPTypeUC, overheadLib
		}
		if g.UIdx != uint32(len(qps)) {
			t.Fatalf("QP %s: user index %d in place %d", g.Name, g.UIdx, len(qps))
		}
		ask := g.Requested.cap()
		if g.RQCnt == 0 {
			ask.MaxRecvWR, ask.MaxRecvSGE = 0, 0 // on an SRQ
		}
		layout, err := layoutQP(&r.drv.lim, ask, overhead)
		if err != nil {
			t.Fatalf("QP %s: %v", g.Name, err)
		}
		if layout.user() != g.Returned.cap() || layout.sqEntries != g.SQCnt || layout.rqEntries != g.RQCnt {
			t.Fatalf("QP %s: layout %+v, want %+v", g.Name, layout, g)
		}
		// The kernel's choice of a static register is not recorded: an unused
		// one at the recorded place of its page, not on the first page.
		index := uint32(bfregsPerUAR)
		if g.BFOffset == 0xa00 {
			index++
		}
		for !r.drv.uars.dynamic && r.drv.uars.index[index].users > 0 {
			index += bfregsPerUAR
		}
		recv := r.cq(cqDepth)
		var srq *uverbs.SRQ
		if g.RQCnt == 0 {
			srq = r.srq(15, 2)
		}
		q := r.qpOn(srq, typ, r.cq(cqDepth), recv, layout, strings.Contains(g.Name, "sig_all"), g.QPN, index)
		if q.key != g.UIdx {
			t.Fatalf("QP %s: user index %d, want %d", g.Name, q.key, g.UIdx)
		}
		if got := q.sq.reg.off % uarBytes; u64(got) != g.BFOffset {
			t.Errorf("QP %s: register at %#x, want %#x", g.Name, got, g.BFOffset)
		}
		if q.sq.reg.half != g.BFSize {
			t.Errorf("QP %s: BlueFlame half of %d bytes, want %d", g.Name, q.sq.reg.half, g.BFSize)
		}
		qps[g.Name] = q
	}
	return qps
}

func goldenAHs(t *testing.T, r *rig, list []goldenAH) map[string]*uverbs.AH {
	ahs := make(map[string]*uverbs.AH)
	for _, g := range list {
		ah, err := r.pd.CreateAH(&uverbs.AHAttr{DGID: uverbs.GID(g.DGID), FlowLabel: g.FlowLabel, SGIDIndex: g.SGIDIndex,
			HopLimit: g.HopLimit, TrafficClass: g.TClass, IsGlobal: g.IsGlobal != 0, DLID: g.DLID, SL: g.SL,
			SrcPathBits: g.SrcPathBits, StaticRate: g.StaticRate, Port: g.Port})
		if g.Errno != 0 {
			if !errors.Is(err, syscall.Errno(g.Errno)) {
				t.Errorf("AH %s: %v, want errno %d", g.Name, err, g.Errno)
			}
			continue
		}
		if err != nil {
			t.Fatalf("AH %s: %v", g.Name, err)
		}
		d := ah.Driver().(*addressHandle)
		if g.SportRandom {
			if port := d.av.StatSLLID.Host() & 0xffff; port < 0xc000 {
				t.Errorf("AH %s: UDP source port %#x", g.Name, port)
			}
			d.av.StatSLLID = prm.ToBE32(d.av.StatSLLID.Host()&^0xffff | uint32(binary.BigEndian.Uint16(g.AV[14:])))
		}
		if got := avBytes(&d.av); !bytes.Equal(got, g.AV) {
			t.Errorf("AH %s:\n got %x\nwant %x", g.Name, got, []byte(g.AV))
		}
		ahs[g.Name] = ah
	}
	return ahs
}

type goldenSend struct {
	Name   string     `json:"name"`
	API    string     `json:"api"`
	QP     string     `json:"qp"`
	WRs    []goldenWR `json:"wrs"`
	Ret    int        `json:"ret"`
	BadWR  *int       `json:"bad_wr"`
	Before struct {
		Pi    uint32 `json:"sq_cur_post"`
		Index uint32 `json:"sq_index"`
		Head  uint32 `json:"sq_head"`
		Half  uint32 `json:"bf_offset"`
	} `json:"before"`
	After struct {
		Pi    uint32   `json:"sq_cur_post"`
		Head  uint32   `json:"sq_head"`
		DBRec hexBytes `json:"dbrec"`
	} `json:"after"`
	WQEs []struct {
		Index  uint32 `json:"sq_index"`
		DS     uint32 `json:"ds"`
		WQEBBs uint32 `json:"wqebbs"`
		goldenBytes
	} `json:"wqes"`
	UAR *struct {
		Kind       string `json:"kind"`
		PageOffset u64    `json:"page_offset"`
		FromReg    uint32 `json:"offset_from_bf_reg"`
		Len        int    `json:"len"`
		goldenBytes
	} `json:"uar"`
}

var goldenOpcodes = map[string]uverbs.WROpcode{
	"SEND": uverbs.WRSend, "SEND_WITH_IMM": uverbs.WRSendWithImm, "RDMA_WRITE": uverbs.WRRDMAWrite,
	"RDMA_WRITE_WITH_IMM": uverbs.WRRDMAWriteWithImm, "RDMA_READ": uverbs.WRRDMARead,
	"ATOMIC_CMP_AND_SWP": uverbs.WRAtomicCmpAndSwp, "ATOMIC_FETCH_AND_ADD": uverbs.WRAtomicFetchAndAdd,
	"SEND_WITH_INV": uverbs.WRSendWithInv, "LOCAL_INV": uverbs.WRLocalInv,
}

// absent says why our API cannot express the vector, or "".
func (v *goldenSend) absent() string {
	for _, w := range v.WRs {
		if _, ok := goldenOpcodes[w.Opcode]; !ok {
			return "opcode " + w.Opcode + " is not offered"
		}
	}
	return ""
}

// undone tells a batch of ibv_wr that libmlx5 took back because of a bad request
// in it, and which that is.
func (v *goldenSend) undone(s *sendQueue) (bad int, ok bool) {
	if v.API != "ibv_wr" || v.Ret == 0 {
		return 0, false
	}
	return slices.IndexFunc(v.WRs, func(w goldenWR) bool {
		n := 0
		if w.Inline != nil {
			for _, p := range *w.Inline {
				n += len(p)
			}
		}
		return len(w.SGEs) > s.maxSGE || n > int(s.maxInline)
	}), true
}

const prefill = 0xa5

func fill(b []byte) {
	for i := range b {
		b[i] = prefill
	}
}

func runSendFile(t *testing.T, f *goldenFile, y *tally) {
	r := goldenRig(t, f)
	qps := goldenQPs(t, r, f.QPs, 16)
	ahs := goldenAHs(t, r, f.AHs)
	inline, err := allocMemory(1 << 16)
	if err != nil {
		t.Fatal(err)
	}
	defer freeMemory(inline)
	vectors(t, f, func(t *testing.T, v *goldenSend) {
		if why := v.absent(); why != "" {
			y.skip(t, why)
			return
		}
		y.ran++
		q := qps[v.QP]
		if q == nil {
			t.Fatalf("QP %q is not in the table", v.QP)
		}
		s := &q.sq
		s.pi, s.head, s.seenTail, s.half = v.Before.Pi, v.Before.Head, v.Before.Head, v.Before.Half
		s.fence = 0
		if len(v.WQEs) > 0 && v.WQEs[0].Hex[11]&prm.CtrlSmallFence != 0 {
			s.fence = prm.CtrlSmallFence // a LOCAL_INV precedes the vector
		}
		s.tail.Store(v.Before.Head)
		if s.pi&(s.entries-1) != v.Before.Index {
			t.Fatalf("index %d of pi %d in %d entries", v.Before.Index, s.pi, s.entries)
		}
		q.db.Store(prm.QPSend, s.pi&0xffff)
		sq := prm.Bytes(s.start, s.entries*prm.WQEBBBytes)
		page := s.reg.page.mem
		fill(sq)
		fill(page)
		r.k.kicks = nil

		wrs, used := make([]uverbs.SendWR, len(v.WRs)), inline
		for i, w := range v.WRs {
			wr := &wrs[i]
			*wr = uverbs.SendWR{WRID: uint64(w.WRID), Opcode: goldenOpcodes[w.Opcode], Flags: uverbs.SendFlags(w.Flags),
				RemoteAddr: uint64(w.RemoteAddr), RKey: w.RKey, RemoteQPN: w.RemoteQPN, RemoteQKey: w.RemoteQKey,
				CompareAdd: uint64(w.CompareAdd), Swap: uint64(w.Swap), InvalidateRKey: uint32(w.Invalidate)}
			if w.AH != "" {
				if wr.AH = ahs[w.AH]; wr.AH == nil {
					t.Fatalf("AH %q is not in the table", w.AH)
				}
			}
			if len(w.Imm) == 4 {
				wr.ImmData = binary.BigEndian.Uint32(w.Imm)
			}
			for _, sge := range w.SGEs {
				wr.SGList = append(wr.SGList, uverbs.SGE{Addr: uint64(sge.Addr), Length: sge.Length, LKey: sge.LKey})
			}
			if w.Inline != nil {
				for _, data := range *w.Inline {
					wr.SGList = append(wr.SGList, uverbs.SGE{Addr: prm.Addr(&used[0]), Length: uint32(copy(used, data))})
					used = used[len(data)+1:]
				}
			}
		}
		n, err := q.PostSend(wrs)
		if bad, ok := v.undone(s); ok {
			y.differ("ibv_wr takes a whole batch back; PostSend posts what precedes the bad request")
			checkPosted(t, y, n, err, len(wrs), v.Ret, &bad)
			blocks := uint32(0)
			for range n {
				blocks += (prm.Ctrl(s.wqebb(v.Before.Pi+blocks)).QPNDS.Host()&0x3f + 3) / 4
			}
			if n == 0 || s.pi != v.Before.Pi+blocks || s.head != v.Before.Head+uint32(n) || q.db.Load(prm.QPSend) != s.pi&0xffff || len(r.k.kicks) != 1 {
				t.Errorf("%d posted in %d WQEBBs: pi %d, head %d, %d kicks", n, blocks, s.pi, s.head, len(r.k.kicks))
			}
			return
		}
		checkPosted(t, y, n, err, len(wrs), v.Ret, v.BadWR)
		if s.pi != v.After.Pi || s.head != v.After.Head {
			t.Errorf("pi %d, head %d, want %d, %d", s.pi, s.head, v.After.Pi, v.After.Head)
		}
		if got := recordBytes(q.db.DBRec); !bytes.Equal(got, v.After.DBRec) {
			t.Errorf("doorbell record %x, want %x", got, []byte(v.After.DBRec))
		}

		var last []byte // the last WQE, in whole WQEBBs
		for i, w := range v.WQEs {
			at := int(w.Index) * prm.WQEBBBytes
			wqe := append([]byte(nil), append(sq[at:len(sq):len(sq)], sq[:at]...)[:w.WQEBBs*prm.WQEBBBytes]...)
			if op := v.WRs[i].Opcode; strings.HasPrefix(op, "ATOMIC") && w.Hex[51] != atomicBytes {
				// ibv_wr takes the element's length as it is.
				y.differ("an atomic's element is of 8 bytes, as ibv_post_send makes it")
				w.Hex[51] = atomicBytes
				v.UAR.Hex[51] = atomicBytes
			}
			if d := w.diff(wqe); d != "" {
				t.Errorf("WQE %d: %s", i, d)
			}
			if slot := s.slot(w.Index); slot.wrid != uint64(v.WRs[i].WRID) {
				t.Errorf("WQE %d: work request id %#x", i, slot.wrid)
			}
			last = wqe
		}
		for i := v.After.Pi; i != v.Before.Pi+s.entries; i++ {
			if b := sq[i&(s.entries-1)*prm.WQEBBBytes:][:prm.WQEBBBytes]; !bytes.Equal(b, bytes.Repeat([]byte{prefill}, len(b))) {
				t.Errorf("WQEBB %d behind the last WQE was written", i&(s.entries-1))
			}
		}
		v.checkUAR(t, y, r, s, page, last)
	})
}

// TestUCWritesWhatRCWrites runs the recordings of RC on QPs of UC, as far as UC
// has the operations: libmlx5 has one code for both, and WQEs do not tell.
func TestUCWritesWhatRCWrites(t *testing.T) {
	lacks := map[string]bool{"RDMA_READ": true, "ATOMIC_CMP_AND_SWP": true, "ATOMIC_FETCH_AND_ADD": true, "SEND_WITH_INV": true}
	y := &tally{t: t, skipped: make(map[string]int), differences: make(map[string]int)}
	for _, name := range []string{"rc_send", "rc_send_wr_api", "send_wrap"} {
		f := readGolden(t, "../testdata/golden/mlx5/"+name+".json")
		rc := map[string]bool{}
		for i := range f.QPs {
			if f.QPs[i].Type == "RC" {
				f.QPs[i].Type = "UC"
				rc[f.QPs[i].Name] = true
			}
		}
		all := f.Vectors
		f.Vectors = nil
		for _, raw := range all {
			var v goldenSend
			if err := json.Unmarshal(raw, &v); err != nil {
				t.Fatal(err)
			}
			if rc[v.QP] && !slices.ContainsFunc(v.WRs, func(w goldenWR) bool { return lacks[w.Opcode] }) {
				f.Vectors = append(f.Vectors, raw)
			}
		}
		t.Run(name, func(t *testing.T) { runSendFile(t, f, y) })
	}
	t.Logf("%d ran", y.ran)
	if y.ran < 60 || len(y.skipped) != 0 {
		t.Errorf("only %d ran, skipped %v", y.ran, y.skipped)
	}
}

// checkUAR compares what was stored to the UAR page.
func (v *goldenSend) checkUAR(t *testing.T, y *tally, r *rig, s *sendQueue, page, last []byte) {
	untouched := func(b []byte) {
		if !bytes.Equal(b, bytes.Repeat([]byte{prefill}, len(b))) {
			t.Error("the UAR page was written beyond the doorbell")
		}
	}
	if v.UAR == nil {
		untouched(page)
		if len(r.k.kicks) != 0 {
			t.Error("kicked without a doorbell")
		}
		return
	}
	off := int(s.reg.off + v.UAR.FromReg)
	if off%uarBytes != int(v.UAR.PageOffset) {
		t.Errorf("doorbell at %#x of the page, want %#x", off%uarBytes, v.UAR.PageOffset)
	}
	if len(r.k.kicks) != 1 || int(r.k.kicks[0]) != off {
		t.Errorf("kicks at %#x, want one at %#x", r.k.kicks, off)
	}
	want, n := v.UAR.goldenBytes, v.UAR.Len
	if v.UAR.Kind == "blueflame" && len(v.UAR.Unwritten) > 0 && v.UAR.Unwritten[0][0] == 0 {
		// libmlx5 copies the control segment of the WQE that it gave up.
		y.differ("the doorbell carries the last accepted WQE, not the refused one")
		want, n = goldenBytes{Hex: last}, len(last)
	}
	if v.UAR.Kind == "doorbell" && n != 8 || n != len(want.Hex) {
		t.Fatalf("doorbell %q of %d bytes", v.UAR.Kind, n)
	}
	if d := want.diff(page[off : off+n]); d != "" {
		t.Errorf("UAR: %s", d)
	}
	untouched(page[:off])
	untouched(page[off+n:])
	if want := v.Before.Half ^ s.reg.half; s.half != want {
		t.Errorf("next half at %d, want %d", s.half, want)
	}
}

// checkPosted compares the outcome of posting a list.
func checkPosted(t *testing.T, y *tally, n int, err error, total, ret int, bad *int) {
	t.Helper()
	if ret == 0 {
		if n != total || err != nil {
			t.Fatalf("posted %d of %d: %v", n, total, err)
		}
		return
	}
	if bad == nil || n != *bad {
		t.Fatalf("posted %d: %v, want bad_wr %v", n, err, bad)
	}
	switch {
	case errors.Is(err, syscall.Errno(ret)):
	case syscall.Errno(ret) == syscall.ENOMEM && (err == uverbs.ErrInlineTooLong || err == uverbs.ErrTooManySGEs):
		y.differ("EINVAL for too much inline data or too many SGEs, where libmlx5 says ENOMEM")
	default:
		t.Errorf("%v, want errno %d", err, ret)
	}
}
