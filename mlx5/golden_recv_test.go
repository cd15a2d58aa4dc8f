package mlx5

import (
	"bytes"
	"testing"

	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

type goldenRecv struct {
	Name   string     `json:"name"`
	QP     string     `json:"qp"`
	WRs    []goldenWR `json:"wrs"`
	Ret    int        `json:"ret"`
	BadWR  *int       `json:"bad_wr"`
	Before struct {
		Head  uint32 `json:"rq_head"`
		Index uint32 `json:"rq_index"`
	} `json:"before"`
	After struct {
		Head  uint32   `json:"rq_head"`
		DBRec hexBytes `json:"dbrec"`
	} `json:"after"`
	WQEs []struct {
		Index uint32 `json:"rq_index"`
		goldenBytes
	} `json:"wqes"`
}

func runRecvFile(t *testing.T, f *goldenFile, y *tally) {
	r := goldenRig(t, f)
	qps := goldenQPs(t, r, f.QPs, 16)
	vectors(t, f, func(t *testing.T, v *goldenRecv) {
		y.ran++
		q := qps[v.QP]
		if q == nil {
			t.Fatalf("QP %q is not in the table", v.QP)
		}
		rq := &q.rq
		rq.head, rq.seenTail = v.Before.Head, v.Before.Head
		rq.tail.Store(v.Before.Head)
		q.db.Store(prm.QPRecv, v.Before.Head&0xffff)
		mem := prm.Bytes(rq.start, rq.entries<<rq.shift)
		fill(mem)

		wrs := make([]uverbs.RecvWR, len(v.WRs))
		for i, w := range v.WRs {
			wrs[i].WRID = uint64(w.WRID)
			for _, sge := range w.SGEs {
				wrs[i].SGList = append(wrs[i].SGList, uverbs.SGE{Addr: uint64(sge.Addr), Length: sge.Length, LKey: sge.LKey})
			}
		}
		n, err := q.PostRecv(wrs)
		checkPosted(t, y, n, err, len(wrs), v.Ret, v.BadWR)
		if rq.head != v.After.Head {
			t.Errorf("head %d, want %d", rq.head, v.After.Head)
		}
		if got := recordBytes(q.db.DBRec); !bytes.Equal(got, v.After.DBRec) {
			t.Errorf("doorbell record %x, want %x", got, []byte(v.After.DBRec))
		}
		if n != len(v.WQEs) {
			t.Errorf("%d WQEs, want %d", n, len(v.WQEs))
		}
		for i, w := range v.WQEs {
			if d := w.diff(mem[w.Index<<rq.shift:][:1<<rq.shift]); d != "" {
				t.Errorf("WQE %d: %s", i, d)
			}
			if id := *rq.wrid(w.Index); id != uint64(v.WRs[i].WRID) {
				t.Errorf("WQE %d: work request id %#x", i, id)
			}
		}
	})
}
