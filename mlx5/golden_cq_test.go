package mlx5

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strconv"
	"strings"
	"syscall"
	"testing"

	kabi "github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/mlx5/internal/abi"
	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

type goldenWC struct {
	WRID         u64      `json:"wr_id"`
	Status       uint8    `json:"status"`
	Opcode       *uint8   `json:"opcode"`
	VendorErr    *uint32  `json:"vendor_err"`
	ByteLen      *uint32  `json:"byte_len"`
	Imm          hexBytes `json:"imm_data_or_rkey_raw"`
	QPN          uint32   `json:"qp_num"`
	SrcQP        *uint32  `json:"src_qp"`
	Flags        uint8    `json:"wc_flags"`
	PKeyIndex    *uint16  `json:"pkey_index"`
	SLID         *uint16  `json:"slid"`
	SL           *uint8   `json:"sl"`
	DLIDPathBits *uint8   `json:"dlid_path_bits"`
}

// same compares what libmlx5 wrote; what it left alone is for us to choose.
func (g *goldenWC) same(wc *uverbs.WC) bool {
	imm := wc.ImmData
	if len(g.Imm) == 4 {
		if imm = binary.BigEndian.Uint32(g.Imm); g.Flags&uint8(uverbs.WCWithInv) != 0 {
			imm = binary.LittleEndian.Uint32(g.Imm)
		}
	}
	return wc.WRID == uint64(g.WRID) && uint8(wc.Status) == g.Status && wc.QPN == g.QPN && uint8(wc.Flags) == g.Flags && wc.ImmData == imm &&
		is((*uint8)(&wc.Opcode), g.Opcode) && is(&wc.VendorErr, g.VendorErr) && is(&wc.ByteLen, g.ByteLen) && is(&wc.SrcQP, g.SrcQP) &&
		is(&wc.PKeyIndex, g.PKeyIndex) && is(&wc.SLID, g.SLID) && is(&wc.SL, g.SL) && is(&wc.DLIDPathBits, g.DLIDPathBits)
}

func is[T comparable](got, want *T) bool { return want == nil || *got == *want }

type goldenPoll struct {
	Name   string `json:"name"`
	QP     string `json:"qp"`
	CQ     string `json:"cq"`
	Before struct {
		CI  uint32 `json:"cons_index"`
		Cnt uint32 `json:"cqe_cnt"`
	} `json:"before"`
	Ask  int        `json:"ask"`
	CQEs []hexBytes `json:"cqes"`
	Ret  int        `json:"ret"`
	WCs  []struct {
		WC goldenWC `json:"wc"`
	} `json:"wcs"`
	After struct {
		CI    uint32   `json:"cons_index"`
		DBRec hexBytes `json:"dbrec"`
	} `json:"after"`
	Buffer hexBytes `json:"recv_buffer"`
}

const libmlx5PollErr = -2

func runCQEFile(t *testing.T, f *goldenFile, y *tally) {
	t.Setenv("MLX5_SCATTER_TO_CQE", "1")
	r := goldenRig(t, f)
	qps := goldenQPs(t, r, f.QPs, 63)
	layout, err := layoutQP(&r.drv.lim, uverbs.QPCap{MaxSendWR: 64, MaxRecvWR: 64, MaxSendSGE: 2, MaxRecvSGE: 2}, overheadUD)
	if err != nil {
		t.Fatal(err)
	}
	// Not in the file's table: a QP on CQs of four entries.
	qps["own"] = r.qpWith(uverbs.QPTypeUD, r.cq(3), r.cq(3), layout, false, 423, 0)
	// Nor this one, on CQs of 8 entries of 128 bytes.
	r.drv.cqeBytes = 2 * prm.CQEBytes
	qps["cqe128"] = r.qpWith(uverbs.QPTypeRC, r.cq(7), r.cq(7), layout, false, 424, 0)
	vectors(t, f, func(t *testing.T, v *goldenPoll) { runPoll(t, y, qps[v.QP], v) })
}

// rebuild makes the CQEs of a vector whose CQEs stood in the ring already, from
// the completions that they gave; all else is as in the group's other CQEs.
func (v *goldenPoll) rebuild(q *qp) {
	for i := range v.WCs {
		w := &v.WCs[i].WC
		e := make([]byte, prm.CQEBytes)
		binary.BigEndian.PutUint32(e[16:], uint32(*w.DLIDPathBits)<<16)
		binary.BigEndian.PutUint32(e[20:], uint32(*w.SLID))
		binary.BigEndian.PutUint32(e[24:], uint32(*w.SL)<<24|*w.SrcQP)
		binary.BigEndian.PutUint32(e[32:], q.key)
		binary.BigEndian.PutUint32(e[36:], 0x0a0b0c0d)
		binary.BigEndian.PutUint32(e[44:], *w.ByteLen)
		binary.BigEndian.PutUint32(e[56:], q.qpn)
		binary.BigEndian.PutUint16(e[60:], uint16(w.WRID))
		e[63] = prm.CQERespSend << 4
		if len(w.Imm) > 0 {
			e[63] = prm.CQERespSendImm << 4
		}
		v.CQEs = append(v.CQEs, e)
	}
}

// runPoll brings CQ and queues to the vector's state and polls.
func runPoll(t *testing.T, y *tally, q *qp, v *goldenPoll) {
	if q == nil {
		t.Fatalf("QP %q is not in the table", v.QP)
	}
	y.ran++
	c, first := prepare(t, q, v)
	if len(v.CQEs) == 0 && v.Ret > 0 && !c.written(c.ci) {
		y.differ("its CQEs belong to a vector that is not in this directory: made from the completions")
		v.rebuild(q)
		c, first = prepare(t, q, v)
	}
	buf := v.buffers(t, q, first)
	format := byte(0)
	if len(v.CQEs) == 1 {
		format = v.CQEs[0][len(v.CQEs[0])-1] & prm.CQEFormatMask
	}
	if format != 0 {
		// What was not asked for is refused, not taken for something else.
		q.inline = false
		if n, err := c.Poll(make([]uverbs.WC, 1)); n != 0 || err != uverbs.ErrCQCorrupt {
			t.Errorf("%d, %v", n, err)
		}
		q.inline = true
		prepare(t, q, v)
		buf = v.buffers(t, q, first)
	}
	if format == prm.CQEScatter32 && v.CQ == "recv" {
		y.differ("where 32 bytes of data lie over an entry's fields, the completion has 0")
		w := &v.WCs[0].WC
		w.SrcQP, w.SLID, w.SL, w.DLIDPathBits = new(uint32), new(uint16), new(uint8), new(uint8)
		w.Flags &^= uint8(uverbs.WCGRH)
	}
	wcs := make([]uverbs.WC, v.Ask)
	n, err := c.Poll(wcs)
	if v.Ret == libmlx5PollErr {
		if n != 0 || err != uverbs.ErrCQCorrupt {
			t.Fatalf("%d, %v, want an error", n, err)
		}
	} else if n != v.Ret || err != nil {
		t.Fatalf("%d, %v, want %d", n, err, v.Ret)
	}
	for i := range v.WCs {
		if !v.WCs[i].WC.same(&wcs[i]) {
			t.Errorf("completion %d: %+v\nwant %+v", i, wcs[i], v.WCs[i].WC)
		}
	}
	if c.ci != v.After.CI {
		t.Errorf("consumer index %d, want %d", c.ci, v.After.CI)
	}
	if got := recordBytes(c.db.DBRec); !bytes.Equal(got, v.After.DBRec) {
		t.Errorf("doorbell record %x, want %x", got, []byte(v.After.DBRec))
	}
	if n > 0 && v.CQ == "send" {
		if want := uint32(wcs[n-1].WRID)&0xffff + 1; q.sq.tail.Load() != want {
			t.Errorf("send queue retired up to %d, want %d", q.sq.tail.Load(), want)
		}
	}
	if v.Buffer != nil && !bytes.Equal(buf[:len(v.Buffer)], v.Buffer) {
		t.Errorf("buffer %x\nwant   %x", buf[:len(v.Buffer)], []byte(v.Buffer))
	}
	if s := q.srq; s != nil && v.CQ == "recv" {
		if s.posted(first) {
			t.Errorf("WQE %d was not given back", first)
		}
		if want := uint32(1 - n); s.counter != want {
			t.Errorf("%d posted again, want %d", s.counter, want)
		}
		return
	}
	if n > 0 && v.CQ == "recv" {
		if got := q.rq.tail.Load(); got != first+uint32(n) {
			t.Errorf("receive queue retired up to %d, want %d", got, first+uint32(n))
		}
	}
}

// prepare sets consumer index, CQEs and work request ids. The id of a send is
// 0x7b..|WQE index, of a receive 0x5a..|its number. It returns the first
// outstanding receive.
func prepare(t *testing.T, q *qp, v *goldenPoll) (*cq, uint32) {
	c := q.recvCQ
	if v.CQ == "send" {
		c = q.sendCQ
	}
	if c.mask+1 != v.Before.Cnt {
		t.Fatalf("CQ of %d entries, want %d", c.mask+1, v.Before.Cnt)
	}
	c.ci = v.Before.CI
	c.db.Store(prm.CQCI, c.ci)
	first := v.Before.CI
	if len(v.CQEs) > 0 {
		first = uint32(binary.BigEndian.Uint16(v.CQEs[0][len(v.CQEs[0])-4:]))
	} else if len(v.WCs) > 0 {
		first = uint32(v.WCs[0].WC.WRID) & 0xffff
	}
	for i, e := range v.CQEs {
		c.put(uint32(i), e)
	}
	if s := q.srq; s != nil {
		s.counter = 0
		for i := range s.mask + 1 {
			*s.slot(i) = srqSlot{wrid: 0x5b<<56 | uint64(i), link: srqPosted}
		}
		s.head, s.tail = 7, 10 // anywhere but where the vectors are
	}
	q.rq.tail.Store(first)
	q.rq.head = first + q.rq.entries
	q.db.Store(prm.QPRecv, q.rq.head&0xffff)
	for i := first; i != q.rq.head; i++ {
		*q.rq.wrid(i) = 0x5a<<56 | uint64(i)
	}
	for i := range v.WCs {
		if v.WCs[i].WC.WRID == 0 && q.srq == nil {
			*q.rq.wrid(first + uint32(i)) = 0 // the recording's fillers have no id
		}
	}
	if len(v.After.DBRec) == 8 {
		// The arm word is of an earlier arming; Poll must leave it alone.
		c.db.Store(prm.CQArmW, binary.BigEndian.Uint32(v.After.DBRec[4:]))
	}
	start := max(first, 3) - 3 // up to three unsignaled ones before it
	q.sq.tail.Store(start)
	q.sq.head = start + q.sq.maxPost
	for i := start; i != q.sq.head; i++ {
		*q.sq.slot(i) = sendSlot{wrid: 0x7b<<56 | uint64(i), head: i, index: uint16(i)}
	}
	if v.CQ == "send" && len(v.CQEs) == 1 && v.CQEs[0][56] == prm.OpcodeUMR {
		q.sq.slot(first).opcode = uverbs.WRLocalInv
	}
	return c, first
}

// buffers makes the WQE of a completion that holds data: the elements are as
// the vectors' README says.
func (v *goldenPoll) buffers(t *testing.T, q *qp, i uint32) []byte {
	if v.Buffer == nil {
		return nil
	}
	mem, err := allocMemory(4096)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { freeMemory(mem) })
	for i := range mem {
		mem[i] = 0xcc
	}
	type piece struct{ off, n uint32 }
	list := []piece{{0, 256}}
	switch {
	case strings.Contains(v.Name, "two_sges"), strings.Contains(v.Name, "req_read"):
		list = []piece{{0, 8}, {24, 64}}
	case strings.Contains(v.Name, "overflow"):
		list = []piece{{0, 8}, {24, 4}}
	}
	var seg *byte
	switch {
	case v.CQ == "send":
		at := q.sq.wqebb(i)
		*prm.Ctrl(at) = prm.CtrlSeg{QPNDS: prm.ToBE32(q.qpn<<8 | uint32(2+len(list)))}
		seg = prm.Add(at, 2*prm.SegBytes)
	case q.srq != nil:
		seg = prm.Add(q.srq.wqe(i), prm.SegBytes)
	default:
		seg = q.rq.wqe(i)
	}
	for _, p := range list {
		*prm.Data(seg) = prm.DataSeg{ByteCount: prm.ToBE32(p.n), Addr: prm.ToBE64(prm.Addr(&mem[p.off]))}
		seg = prm.Add(seg, prm.SegBytes)
	}
	return mem
}

type goldenArm struct {
	goldenPoll
	SolicitedOnly int      `json:"solicited_only"`
	CQN           uint32   `json:"cqn"`
	CI            uint32   `json:"cons_index"`
	Events        uint32   `json:"events_acked"`
	DBRec         hexBytes `json:"dbrec"`
	UAR           *struct {
		PageOffset u64      `json:"page_offset"`
		Hex        hexBytes `json:"hex"`
	} `json:"uar"`
}

func runCQArmFile(t *testing.T, f *goldenFile, y *tally) {
	r := goldenRig(t, f)
	recv := r.cq(15)
	layout, err := layoutQP(&r.drv.lim, uverbs.QPCap{MaxSendWR: 16, MaxRecvWR: 16, MaxSendSGE: 1, MaxRecvSGE: 1}, overheadUD)
	if err != nil {
		t.Fatal(err)
	}
	q := r.qpWith(uverbs.QPTypeUD, r.cq(15), recv, layout, false, 419, 0)
	c := q.recvCQ
	vectors(t, f, func(t *testing.T, v *goldenArm) {
		if v.UAR == nil {
			runPoll(t, y, q, &v.goldenPoll)
			return
		}
		y.ran++
		c.ci = v.CI
		c.db.Store(prm.CQCI, v.CI)
		for c.armSN.Store(0); c.armSN.Load() != v.Events; {
			c.EventArrived()
		}
		page := r.drv.uars.cq.page.mem
		fill(page)
		r.k.kicks = nil
		if err := c.Arm(v.SolicitedOnly != 0); err != nil {
			t.Fatal(err)
		}
		if got := recordBytes(c.db.DBRec); !bytes.Equal(got, v.DBRec) {
			t.Errorf("doorbell record %x, want %x", got, []byte(v.DBRec))
		}
		off := int(v.UAR.PageOffset)
		if got := page[off : off+8]; !bytes.Equal(got, v.UAR.Hex) || c.cqn != v.CQN {
			t.Errorf("register %x of CQ %d, want %x of %d", got, c.cqn, []byte(v.UAR.Hex), v.CQN)
		}
		rest := append(append([]byte(nil), page[:off]...), page[off+8:]...)
		if !bytes.Equal(rest, bytes.Repeat([]byte{prefill}, len(rest))) {
			t.Error("the UAR page was written beyond the register")
		}
		if len(r.k.kicks) != 1 || int(r.k.kicks[0]) != off {
			t.Errorf("kicks at %#x", r.k.kicks)
		}
		c.db.Store(prm.CQArmW, 0)
	})
}

type goldenCreateCQ struct {
	API       string   `json:"api"`
	Requested int      `json:"requested_cqe"`
	Returned  int      `json:"returned_cqe"`
	Errno     int      `json:"errno"`
	Reached   *bool    `json:"reached_kernel"`
	Cnt       uint32   `json:"cqe_cnt"`
	BufBytes  int      `json:"buf_alloc_size"`
	DBOffset  u64      `json:"dbrec_page_offset"`
	InitDBRec hexBytes `json:"initial_dbrec"`
	CQEBytes  uint32   `json:"cqe_size"`
	FirstCQE  hexBytes `json:"initial_first_cqe"`
	Kernel    struct {
		Value uint64 `json:"value"`
	} `json:"kernel_cqe"`
	UHW struct {
		Data goldenStruct `json:"data"`
	} `json:"kernel_udata_in"`
}

func runCreateCQFile(t *testing.T, f *goldenFile, y *tally) {
	vectors(t, f, func(t *testing.T, v *goldenCreateCQ) {
		y.ran++
		if v.CQEBytes != 0 {
			t.Setenv("MLX5_CQE_SIZE", strconv.Itoa(int(v.CQEBytes)))
		}
		r := openRig(t, newFakeKernel(t))
		before := len(r.k.commands)
		if v.Cnt > 1<<20 || v.Errno != 0 && v.Requested > 1<<20 {
			// The arithmetic alone: the ring would take 256 MiB and more.
			n, err := cqEntries(v.Requested)
			switch {
			case v.Errno == 0 && (err != nil || n != v.Cnt || int(n)*prm.CQEBytes != v.BufBytes || uint64(n-1) != v.Kernel.Value):
				t.Errorf("%d entries, %v, want %d", n, err, v.Cnt)
			case v.Errno != 0 && *v.Reached != (err == nil):
				t.Errorf("%d entries, %v; reached the kernel: %v", n, err, *v.Reached)
			}
			y.differ("sized, but not allocated: 256 MiB")
			return
		}
		ucq, err := r.ctx.CreateCQ(&uverbs.CQInitAttr{Depth: v.Requested})
		if v.Errno != 0 {
			if !errors.Is(err, syscall.Errno(v.Errno)) || (len(r.k.commands) > before) != *v.Reached {
				t.Errorf("%v, want errno %d", err, v.Errno)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		c := ucq.Driver().(*cq)
		if ucq.Depth() != v.Returned || c.mask+1 != v.Cnt || len(c.mem) != v.BufBytes || c.db.slot*r.drv.dbrecs.stride != int(v.DBOffset) {
			t.Errorf("depth %d, %d entries in %d bytes, record %d", ucq.Depth(), c.mask+1, len(c.mem), c.db.slot)
		}
		if !bytes.Equal(recordBytes(c.db.DBRec), v.InitDBRec) {
			t.Errorf("doorbell record %x", recordBytes(c.db.DBRec))
		}
		for i := range c.mask + 1 {
			if e := c.mem[i*c.stride:][:c.stride]; !bytes.Equal(e, v.FirstCQE) {
				t.Fatalf("CQE %d: %x", i, e)
			}
		}
		cmd := r.k.commands[len(r.k.commands)-1]
		if got := cmd.attrs[kabi.UVERBS_ATTR_CREATE_CQ_CQE].data; got != v.Kernel.Value {
			t.Errorf("asked the kernel for %d, want %d", got, v.Kernel.Value)
		}
		in := cmd.attrs[kabi.UVERBS_ATTR_UHW_IN].in
		req := decode[abi.Mlx5_ib_create_cq](in)
		if req.Buf_addr != prm.Addr(&c.mem[0]) || req.Db_addr != prm.Addr((*byte)(bytePtr(c.db.DBRec))) {
			t.Errorf("addresses %#x, %#x", req.Buf_addr, req.Db_addr)
		}
		clear(in[:16])
		if !bytes.Equal(in, v.UHW.Data.Hex) {
			t.Errorf("driver's payload %x, want %x", in, []byte(v.UHW.Data.Hex))
		}
		if err := ucq.Close(); err != nil {
			t.Error(err)
		}
	})
}
