package mlx5

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"slices"
	"testing"

	kabi "github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// goldenCommand is one command of libmlx5's session.
type goldenCommand struct {
	Via    string `json:"via"`
	Key    string `json:"key"`
	Object uint16 `json:"object_id"`
	Method uint16 `json:"method_id"`
	Write  uint64 `json:"write_cmd"`
	Offset int64  `json:"offset"`
	Attrs  []goldenAttr

	// Of a command by write(2).
	CoreIn goldenStruct  `json:"core_in"`
	UHWIn  *goldenStruct `json:"uhw_in"`
}

type goldenAttr struct {
	ID    uint16          `json:"id"`
	Name  string          `json:"name"`
	Kind  string          `json:"kind"`
	Len   uint16          `json:"len"`
	Flags uint16          `json:"flags"`
	Value json.RawMessage `json:"value"`
	Data  goldenStruct    `json:"data"`
}

func (c *goldenCommand) attr(name string) *goldenStruct {
	for i := range c.Attrs {
		if c.Attrs[i].Name == name {
			return &c.Attrs[i].Data
		}
	}
	return nil
}

// onSRQ tells that the command creates a QP on an SRQ.
func (c *goldenCommand) onSRQ() bool { return c.Key == "QP.CREATE" && c.attr("SRQ_HANDLE") != nil }

// neverIssued says why we do not issue a command of libmlx5's.
var neverIssued = map[string]string{
	"WRITE.QUERY_DEVICE": "no probe for write(2) commands",
	"MLX5_DEVX.OTHER":    "no DEVX context",
}

// isClock tells the mapping of the device's clock.
func isClock(offset int64) bool { return offset>>20 == 5 || offset>>20 == 7 }

// mapped takes the mapping at offset, which command i of the recording made, out of
// those that we made.
func (y *tally) mapped(t *testing.T, mmaps []int64, i int, offset int64) []int64 {
	t.Helper()
	if n := slices.Index(mmaps, offset); n >= 0 {
		y.ran++
		return slices.Delete(mmaps, n, n+1)
	}
	if isClock(offset) {
		y.skip(t, "the device clock is not mapped")
	} else {
		t.Errorf("%d: mmap %#x was not issued", i, offset)
	}
	return mmaps
}

// private is what a session chooses by itself, zeroed on both sides: user
// pointers and handles.
var private = map[string][][2]int{
	"mlx5_ib_create_qp":             {{0, 16}},
	"mlx5_ib_create_cq":             {{0, 16}},
	"mlx5_ib_create_srq":            {{0, 16}},
	"ib_uverbs_alloc_pd":            {{0, 8}},
	"ib_uverbs_create_comp_channel": {{0, 8}},
	"ib_uverbs_reg_mr":              {{0, 16}, {24, 12}},
	"ib_uverbs_create_ah":           {{0, 20}},
	"ib_uverbs_modify_qp":           {{64, 4}},
}

// runControlPlane repeats the session and compares every command that we issue.
func runControlPlane(t *testing.T, f *goldenFile, y *tally) {
	if slices.ContainsFunc(f.Commands, func(c goldenCommand) bool { return c.Via == "write" }) {
		runLegacyWrite(t, f, y)
		return
	}
	t.Setenv("MLX5_SCATTER_TO_CQE", "1") // as libmlx5 has it
	r := goldenRig(t, f)
	k := r.k
	k.bfreg = 24
	k.onWrite = func(cmd uint64, _ []byte) bool { return cmd == kabi.IB_USER_VERBS_EX_CMD_QUERY_DEVICE }
	repeatSession(t, r, f.Commands)

	left := append([]command(nil), k.commands...)
	mmaps := append([]int64(nil), k.mmaps...)
	for i := range f.Commands {
		g := &f.Commands[i]
		if g.Via == "mmap" {
			mmaps = y.mapped(t, mmaps, i, g.Offset)
			continue
		}
		if why := neverIssued[g.Key]; why != "" {
			y.skip(t, why)
			continue
		}
		n := slices.IndexFunc(left, func(c command) bool {
			return c.object == g.Object && c.method == g.Method && c.write == g.Write
		})
		if n < 0 {
			t.Errorf("%d: %s was not issued", i, g.Key)
			continue
		}
		y.ran++
		g.compare(t, y, i, &left[n])
		left = slices.Delete(left, n, n+1)
	}
	for _, c := range left {
		t.Errorf("issued beyond libmlx5's: object %#x method %#x write %#x", c.object, c.method, c.write)
	}
	if len(mmaps) != 0 {
		t.Errorf("mapped beyond libmlx5's: %#x", mmaps)
	}
}

func (g *goldenCommand) compare(t *testing.T, y *tally, seq int, c *command) {
	if g.Key == "WRITE.EX_QUERY_DEVICE" {
		y.differ("the device is queried when the user asks, and without the driver's own answer")
		g.Attrs = slices.DeleteFunc(g.Attrs, func(a goldenAttr) bool { return a.Name == "UHW_OUT" })
	}
	if len(c.attrs) != len(g.Attrs) {
		t.Errorf("%d %s: %d attributes, want %d", seq, g.Key, len(c.attrs), len(g.Attrs))
	}
	for _, want := range g.Attrs {
		got, ok := c.attrs[want.ID]
		if !ok {
			t.Errorf("%d %s: no attribute %d %s", seq, g.Key, want.ID, want.Name)
			continue
		}
		if got.len != want.Len || got.flags&1 != want.Flags&1 {
			t.Errorf("%d %s: attribute %s of %d bytes, flags %d, want %d, %d", seq, g.Key, want.Name, got.len, got.flags, want.Len, want.Flags)
		}
		if want.Kind != "in" && want.Kind != "const_in" {
			continue
		}
		if want.Data.Hex != nil {
			in, hex := append([]byte(nil), got.in...), append([]byte(nil), want.Data.Hex...)
			if len(in) != len(hex) {
				continue // said above
			}
			for _, r := range private[want.Data.Struct] {
				clear(in[r[0]:][:r[1]])
				clear(hex[r[0]:][:r[1]])
			}
			g.compareStruct(t, y, seq, &want.Data, in, hex)
			continue
		}
		var v uint64
		if json.Unmarshal(want.Value, &v) == nil && got.data != v {
			t.Errorf("%d %s: attribute %s = %#x, want %#x", seq, g.Key, want.Name, got.data, v)
		}
	}
}

func (g *goldenCommand) compareStruct(t *testing.T, y *tally, seq int, s *goldenStruct, got, want []byte) {
	le := binary.LittleEndian
	switch s.Struct {
	case "mlx5_ib_alloc_ucontext_req_v2":
		y.differ("no DEVX context is asked for")
		le.PutUint32(want[8:], 0)
	case "mlx5_ib_create_qp":
		if le.Uint32(want[32:]) > 0 { // user index of one of the session's RC QPs
			y.differ("RC send WQEs reserve 32 bytes before the data")
			if ours, theirs := le.Uint32(got[16:]), le.Uint32(want[16:]); ours*2 != theirs {
				t.Errorf("%d %s: %d WQEBBs, want half of %d", seq, g.Key, ours, theirs)
			}
			copy(want[16:20], got[16:20])
		}
	case "ib_uverbs_qp_cap":
		// Inline size follows from the WQE's: 108 of 128 less 20, not 60 of 256 less 196.
		if le.Uint32(got[16:]) == 92 && le.Uint32(want[16:]) == 60 {
			copy(want[16:20], got[16:20])
		}
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%d %s: %s\n got %x\nwant %x", seq, g.Key, s.Struct, got, want)
	}
}

// repeatSession makes the calls that the recording was made with. The rig has
// opened the device and allocated the PD.
func repeatSession(t *testing.T, r *rig, commands []goldenCommand) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := r.ctx.QueryDevice()
	must(err)
	ch, err := r.ctx.CreateCompChannel()
	must(err)
	mem, err := allocMemory(8192)
	must(err)
	defer freeMemory(mem)
	mr, err := r.pd.RegisterMR(mem, 7)
	must(err)
	scq, err := r.ctx.CreateCQ(&uverbs.CQInitAttr{Depth: 100})
	must(err)
	rcq, err := r.ctx.CreateCQ(&uverbs.CQInitAttr{Depth: 200, Channel: ch})
	must(err)

	cap := uverbs.QPCap{MaxSendWR: 64, MaxRecvWR: 128, MaxSendSGE: 2, MaxRecvSGE: 1, MaxInline: 60}
	r.k.nextQPN = 419
	srq := r.srq(16, 2)
	var qps []*uverbs.QP
	for _, init := range []uverbs.QPInitAttr{{Type: uverbs.QPTypeUD}, {Type: uverbs.QPTypeRC}, {Type: uverbs.QPTypeRC, SRQ: srq, SigAll: true}} {
		init.SendCQ, init.RecvCQ, init.Cap = scq, rcq, cap
		qp, err := r.pd.CreateQP(&init)
		must(err)
		r.k.bfreg++
		if r.k.bfreg%bfregsPerUAR >= userBFRegs {
			r.k.bfreg += bfregsPerUAR - userBFRegs // the kernel's
		}
		qps = append(qps, qp)
	}
	created := -1
	for i := range commands {
		switch g := &commands[i]; {
		case g.Key == "QP.CREATE" && !g.onSRQ():
			created++
		case g.Key == "WRITE.MODIFY_QP":
			m := decode[kabi.Ib_uverbs_modify_qp](g.attr("CORE_IN").Hex)
			must(qps[created].Modify(&uverbs.QPAttr{State: uverbs.QPState(m.Qp_state), PathMTU: uverbs.MTU(m.Path_mtu), QKey: m.Qkey,
				RQPSN: m.Rq_psn, SQPSN: m.Sq_psn, DestQPN: m.Dest_qp_num, AccessFlags: uverbs.AccessFlags(m.Qp_access_flags),
				PKeyIndex: m.Pkey_index, MaxRdAtomic: m.Max_rd_atomic, MaxDestRdAtomic: m.Max_dest_rd_atomic, MinRNRTimer: m.Min_rnr_timer,
				Port: m.Port_num, Timeout: m.Timeout, RetryCnt: m.Retry_cnt, RNRRetry: m.Rnr_retry,
				AV: uverbs.AHAttr{DGID: m.Dest.Dgid, SGIDIndex: m.Dest.Sgid_index, HopLimit: m.Dest.Hop_limit, IsGlobal: m.Dest.Is_global != 0, Port: m.Dest.Port_num},
			}, uverbs.QPAttrMask(m.Attr_mask)))
		}
	}
	ah := r.ah()
	must(ah.Close())
	for _, qp := range slices.Backward(qps) {
		must(qp.Close())
	}
	must(srq.Close())
	must(rcq.Close())
	must(scq.Close())
	must(ch.Close())
	must(mr.Close())
	r.close()
	if len(r.k.handles) != 0 {
		t.Errorf("objects left: %v", r.k.handles)
	}
}
