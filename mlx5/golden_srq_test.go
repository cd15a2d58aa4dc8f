package mlx5

import (
	"bytes"
	"encoding/binary"
	"errors"
	"syscall"
	"testing"

	kabi "github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/mlx5/internal/abi"
	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

type goldenSRQ struct {
	Name      string `json:"name"`
	Requested struct {
		MaxWR  uint32 `json:"max_wr"`
		MaxSGE uint32 `json:"max_sge"`
	} `json:"requested"`
	Returned struct {
		MaxWR  uint32 `json:"max_wr"`
		MaxSGE uint32 `json:"max_sge"`
	} `json:"returned"`
	Entries  uint32   `json:"wqe_count"`
	Stride   uint32   `json:"stride"`
	BufBytes int      `json:"buf_alloc_size"`
	Head     uint32   `json:"head"`
	Tail     uint32   `json:"tail"`
	Next     []uint32 `json:"initial_next_index"`
	FirstWQE hexBytes `json:"initial_first_wqe"`
}

type goldenCreateSRQ struct {
	MaxWR       uint32 `json:"requested_max_wr"`
	MaxSGE      uint32 `json:"requested_max_sge"`
	GotWR       uint32 `json:"returned_max_wr"`
	GotSGE      uint32 `json:"returned_max_sge"`
	Errno       int    `json:"errno"`
	Reached     *bool  `json:"reached_kernel"`
	Entries     uint32 `json:"wqe_count"`
	Stride      uint32 `json:"stride"`
	Head        uint32 `json:"head"`
	Tail        uint32 `json:"tail"`
	BufBytes    int    `json:"buf_alloc_size"`
	KernelMaxWR struct {
		Value uint64 `json:"value"`
	} `json:"kernel_max_wr"`
	KernelMaxSGE struct {
		Value uint64 `json:"value"`
	} `json:"kernel_max_sge"`
	UHW struct {
		Data goldenStruct `json:"data"`
	} `json:"kernel_udata_in"`
}

func runCreateSRQFile(t *testing.T, f *goldenFile, y *tally) {
	vectors(t, f, func(t *testing.T, v *goldenCreateSRQ) {
		y.ran++
		r := openRig(t, newFakeKernel(t))
		before := len(r.k.commands)
		attr := &uverbs.SRQInitAttr{SRQAttr: uverbs.SRQAttr{MaxWR: v.MaxWR, MaxSGE: v.MaxSGE}}
		us, err := r.pd.CreateSRQ(attr)
		if v.Errno != 0 {
			if !errors.Is(err, syscall.Errno(v.Errno)) || (len(r.k.commands) > before) != *v.Reached {
				t.Errorf("%v, want errno %d", err, v.Errno)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		s := us.Driver().(*srq)
		if attr.MaxWR != v.GotWR || attr.MaxSGE != v.GotSGE || s.mask+1 != v.Entries || 1<<s.shift != v.Stride || s.head != v.Head ||
			s.tail != v.Tail || len(s.mem) != v.BufBytes || s.db.slot != 0 {
			t.Errorf("%+v in %d bytes, attributes %+v; want %+v", s, len(s.mem), attr, v)
		}
		cmd := r.k.commands[len(r.k.commands)-1]
		if cmd.attrs[kabi.UVERBS_ATTR_CREATE_SRQ_MAX_WR].data != v.KernelMaxWR.Value || cmd.attrs[kabi.UVERBS_ATTR_CREATE_SRQ_MAX_SGE].data != v.KernelMaxSGE.Value {
			t.Errorf("asked the kernel for %+v", cmd.attrs)
		}
		in := cmd.attrs[kabi.UVERBS_ATTR_UHW_IN].in
		req := decode[abi.Mlx5_ib_create_srq](in)
		if req.Buf_addr != prm.Addr(&s.mem[0]) || req.Db_addr != prm.Addr(bytePtr(s.db.DBRec)) {
			t.Errorf("addresses %#x, %#x", req.Buf_addr, req.Db_addr)
		}
		clear(in[:16])
		if !bytes.Equal(in, v.UHW.Data.Hex) {
			t.Errorf("driver's payload %x, want %x", in, []byte(v.UHW.Data.Hex))
		}
		if err := us.Close(); err != nil {
			t.Error(err)
		}
	})
}

type goldenSRQRecv struct {
	Name   string     `json:"name"`
	SRQ    string     `json:"srq"`
	WRs    []goldenWR `json:"wrs"`
	Ret    int        `json:"ret"`
	BadWR  *int       `json:"bad_wr"`
	Before struct {
		Head uint32 `json:"head"`
	} `json:"before"`
	After struct {
		Head  uint32   `json:"head"`
		Tail  uint32   `json:"tail"`
		DBRec hexBytes `json:"dbrec"`
	} `json:"after"`
	WQEs []struct {
		Index uint32 `json:"srq_index"`
		goldenBytes
	} `json:"wqes"`

	Completed *uint32  `json:"completed_wqe_counter"`
	WRID      u64      `json:"wc_wr_id"`
	Head      uint32   `json:"head"`
	Tail      uint32   `json:"tail"`
	Next      []uint32 `json:"next_index"`
}

func (s *srq) nexts() []uint32 {
	list := make([]uint32, s.mask+1)
	for i := range list {
		list[i] = s.next(uint32(i))
	}
	return list
}

func equal(a, b []uint32) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func runSRQRecvFile(t *testing.T, f *goldenFile, y *tally) {
	r := goldenRig(t, f)
	qps := make(map[string]*qp)
	for _, g := range f.SRQs {
		us := r.srq(g.Requested.MaxWR, g.Requested.MaxSGE)
		s := us.Driver().(*srq)
		if s.maxWR != g.Returned.MaxWR || uint32(s.maxSGE) != g.Returned.MaxSGE || s.mask+1 != g.Entries || 1<<s.shift != g.Stride ||
			s.head != g.Head || s.tail != g.Tail || len(s.mem) != g.BufBytes {
			t.Errorf("SRQ %s: %+v, want %+v", g.Name, s, g)
		}
		if !equal(s.nexts(), g.Next) || !bytes.Equal(s.mem[:g.Stride], g.FirstWQE) {
			t.Errorf("SRQ %s: list %v, want %v; first WQE %x", g.Name, s.nexts(), g.Next, s.mem[:g.Stride])
		}
		layout, err := layoutQP(&r.drv.lim, f.QPs[0].Requested.cap(), overheadLib)
		if err != nil {
			t.Fatal(err)
		}
		qps[g.Name] = r.qpOn(us, uverbs.QPTypeRC, r.cq(63), r.cq(63), layout, false, f.QPs[0].QPN+uint32(len(qps)), 0)
	}
	vectors(t, f, func(t *testing.T, v *goldenSRQRecv) {
		y.ran++
		q := qps[v.SRQ]
		if q == nil {
			t.Fatalf("SRQ %q is not in the table", v.SRQ)
		}
		if v.Completed != nil {
			v.complete(t, q)
			return
		}
		s := q.srq
		s.head = v.Before.Head // vectors between may be missing
		s.counter = uint32(binary.BigEndian.Uint32(v.After.DBRec)) - uint32(len(v.WQEs))
		s.db.Store(prm.QPRecv, s.counter)
		for i := range s.mask + 1 {
			fill(prm.Bytes(prm.Add(s.wqe(i), prm.SegBytes), 1<<s.shift-prm.SegBytes))
		}
		wrs := make([]uverbs.RecvWR, len(v.WRs))
		for i, w := range v.WRs {
			wrs[i].WRID = uint64(w.WRID)
			for _, sge := range w.SGEs {
				wrs[i].SGList = append(wrs[i].SGList, uverbs.SGE{Addr: uint64(sge.Addr), Length: sge.Length, LKey: sge.LKey})
			}
		}
		n, err := s.PostRecv(wrs)
		checkPosted(t, y, n, err, len(wrs), v.Ret, v.BadWR)
		if s.head != v.After.Head || s.tail != v.After.Tail || n != len(v.WQEs) {
			t.Errorf("%d posted, head %d, tail %d, want %d, %d, %d", n, s.head, s.tail, len(v.WQEs), v.After.Head, v.After.Tail)
		}
		if got := recordBytes(s.db.DBRec)[:4]; !bytes.Equal(got, v.After.DBRec) {
			t.Errorf("doorbell record %x, want %x", got, []byte(v.After.DBRec))
		}
		for i, w := range v.WQEs {
			if d := w.diff(prm.Bytes(s.wqe(w.Index), 1<<s.shift)); d != "" {
				t.Errorf("WQE %d: %s", i, d)
			}
			if id := s.slot(w.Index).wrid; id != uint64(v.WRs[i].WRID) {
				t.Errorf("WQE %d: work request id %#x", i, id)
			}
		}
	})
}

// complete completes WQEs of the SRQ through the QP's CQ: the vector's, and
// before it those that the list shows to have been completed by vectors that are
// missing.
func (v *goldenSRQRecv) complete(t *testing.T, q *qp) {
	s, c := q.srq, q.recvCQ
	wcs := make([]uverbs.WC, 2)
	for s.tail != v.Tail {
		i := v.Next[s.tail]
		c.put(0, c.cqe(0, q, prm.CQERespSend, 0, uint16(i)))
		if n, err := c.Poll(wcs); n != 1 || err != nil {
			t.Fatalf("WQE %d: %d, %v", i, n, err)
		}
		if s.reclaim(); s.tail != i {
			t.Fatalf("tail %d, want %d", s.tail, i)
		}
	}
	if wcs[0].WRID != uint64(v.WRID) || s.tail != *v.Completed || s.head != v.Head {
		t.Errorf("completion %+v, head %d, tail %d", wcs[0], s.head, s.tail)
	}
	if !equal(s.nexts(), v.Next) {
		t.Errorf("list %v, want %v", s.nexts(), v.Next)
	}
}
