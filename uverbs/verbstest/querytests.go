package verbstest

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

var queryTests = []test{
	{name: "DeviceTellsItsLimits", run: func(e *env) {
		for _, h := range []*host{e.a, e.z} {
			d, err := h.ctx.QueryDevice()
			e.must(err)
			for name, v := range map[string]int{"QPs": d.MaxQP, "work requests": d.MaxQPWR, "pieces": d.MaxSGE, "CQs": d.MaxCQ, "completions": d.MaxCQE,
				"MRs": d.MaxMR, "PDs": d.MaxPD, "AHs": d.MaxAH, "ports": d.Ports, "P_Keys": d.MaxPKeys, "outstanding READs": d.MaxQPInitRdAtomic, "READs to serve": d.MaxQPRdAtomic} {
				if v <= 0 {
					e.Errorf("%s: at most %d %s", h.ctx.Device(), v, name)
				}
			}
			if d.MaxMRSize < 1<<20 || d.PageSizeCap == 0 {
				e.Errorf("%s: MRs of %d bytes, pages %#x", h.ctx.Device(), d.MaxMRSize, d.PageSizeCap)
			}
			if d.NodeGUID != h.ctx.Device().NodeGUID() {
				e.Errorf("%s: node GUID %x by command, %x by listing", h.ctx.Device(), d.NodeGUID, h.ctx.Device().NodeGUID())
			}
			if h.ctx.NumCompVectors() < 1 {
				e.Errorf("%s: %d completion vectors", h.ctx.Device(), h.ctx.NumCompVectors())
			}
			if (e.b.Lacks[SRQ] == "") && (d.MaxSRQ <= 0 || d.MaxSRQWR <= 0 || d.MaxSRQSGE <= 0) {
				e.Errorf("%s: SRQs: %d of %d receives of %d pieces", h.ctx.Device(), d.MaxSRQ, d.MaxSRQWR, d.MaxSRQSGE)
			}
		}
	}},
	{name: "PortIsActive", run: func(e *env) {
		p, err := e.a.ctx.QueryPort(port)
		e.must(err)
		if p.State != uverbs.PortActive || p.ActiveMTU.Bytes() < 256 || p.ActiveMTU > p.MaxMTU || p.GIDTblLen < 1 || p.PKeyTblLen < 1 || p.MaxMsgSize < 1<<20 {
			e.Errorf("port %+v", p)
		}
		for _, n := range []uint8{0, 200} {
			if _, err := e.a.ctx.QueryPort(n); !errors.Is(err, syscall.EINVAL) {
				e.Errorf("port %d: %v, want EINVAL", n, err)
			}
		}
	}},
	{name: "GIDTableAgreesWithItsSlots", run: func(e *env) {
		table, err := e.a.ctx.QueryGIDTable()
		e.must(err)
		found := false
		for _, g := range table {
			if g.GID.IsZero() {
				e.Errorf("an empty slot is listed: %+v", g)
			}
			if slot, err := e.a.ctx.QueryGID(g.Port, g.Index); err != nil || slot != g {
				e.Errorf("slot %d of port %d: %+v, %v, want %+v", g.Index, g.Port, slot, err, g)
			}
			found = found || g.GID == e.a.gid && g.Index == int(e.a.gidIndex)
		}
		if !found {
			e.Errorf("the chosen GID %v, index %d, is not in the table %+v", e.a.gid, e.a.gidIndex, table)
		}
		if i := e.emptyGID(e.a); i != 0 {
			_, err := e.a.ctx.QueryGID(port, int(i))
			e.fails("an empty slot", err, syscall.ENODATA)
		}
		for _, i := range []int{-1, 1 << 20} {
			if _, err := e.a.ctx.QueryGID(port, i); !errors.Is(err, syscall.EINVAL) {
				e.Errorf("slot %d: %v, want EINVAL", i, err)
			}
		}
	}},
	{name: "PKeyTableHasTheDefault", run: func(e *env) {
		if key, err := e.a.ctx.QueryPKey(port, 0); err != nil || key != 0xffff {
			e.Errorf("P_Key %#x, %v, want 0xffff", key, err)
		}
		if _, err := e.a.ctx.QueryPKey(port, 1<<20); !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.EINVAL) {
			e.Errorf("P_Key beyond the table: %v", err)
		}
	}},
	{name: "LackingCapabilitiesAreRefusedClearly", run: func(e *env) {
		a := e.a.end(shape{})
		for c, try := range map[Capability]func() error{
			SRQ: func() error {
				s, err := a.prot.CreateSRQ(&uverbs.SRQInitAttr{SRQAttr: uverbs.SRQAttr{MaxWR: 8, MaxSGE: 1}})
				if err == nil {
					e.closeLater(s)
				}
				return err
			},
			MemoryWindows: func() error {
				w, err := a.prot.AllocMW(uverbs.MWType2)
				if err == nil {
					e.closeLater(w)
				}
				return err
			},
			ResizeCQ: func() error { return a.sendCQ.Resize(200) },
			ReregMR: func() error {
				return a.mr(8, localOnly).Rereg(uverbs.ReregAccess, nil, nil, localOnly|uverbs.AccessRemoteRead)
			},
			Atomics: func() error {
				return e.attempt(func(a, z *end) uverbs.SendWR {
					old, far := a.mr(8, localOnly), z.mr(8, atomicMR)
					return uverbs.SendWR{Opcode: uverbs.WRAtomicFetchAndAdd, SGList: []uverbs.SGE{old.SGE(0, 8)}, RemoteAddr: far.Addr(), RKey: far.RKey()}
				})
			},
			Invalidation: func() error {
				return e.attempt(func(_, _ *end) uverbs.SendWR {
					return uverbs.SendWR{Opcode: uverbs.WRLocalInv, InvalidateRKey: 1}
				})
			},
		} {
			if e.b.Lacks[c] == "" {
				continue
			}
			err := try()
			if err == nil {
				e.Errorf("%s: lacking, but it worked: the backend should not declare it", c)
			} else if !errors.Is(err, uverbs.ErrNotSupported) && !errors.Is(err, uverbs.ErrBadOpcode) && !errors.Is(err, syscall.EOPNOTSUPP) && !errors.Is(err, syscall.EPROTONOSUPPORT) {
				e.Errorf("%s: %v, want a refusal that says so", c, err)
			}
		}
	}},
}

// attempt posts a request on new QPs. It fails with ErrBadOpcode where the
// provider refuses it, or where the device does so by its completion.
func (e *env) attempt(request func(a, z *end) uverbs.SendWR) error {
	e.Helper()
	a, z := e.connect(shape{}, rc{})
	wr := request(a, z)
	wr.Flags = uverbs.SendSignaled
	if _, err := a.qp.PostSend([]uverbs.SendWR{wr}); err != nil {
		return err
	}
	switch wc := a.one(a.sendCQ, 0); wc.Status {
	case uverbs.WCSuccess:
		return nil
	case uverbs.WCLocQPOpErr, uverbs.WCRemInvReqErr:
		return uverbs.ErrBadOpcode
	default:
		return fmt.Errorf("completed with %v", wc.Status)
	}
}
