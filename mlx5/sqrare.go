package mlx5

import (
	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// Requests of a connected QP that are not sends, WRITEs or READs.

const (
	atomicBytes = 8
	// maxBind is the largest memory window: a WQE counts its bytes in 31 bits.
	maxBind = 1 << 31
)

var (
	errAtomicSGE error = &dataError{"an atomic takes one scatter/gather element, of 8 bytes or more, and no inline data"}
	errNoWindow  error = &dataError{"BIND_MW without a memory window"}
	errBindLong  error = &dataError{"memory window of more than 2 GiB"}
	errTinyQueue error = &dataError{"the send queue has no room for LOCAL_INV or BIND_MW; ask for more MaxSendWR"}
)

// encodeRare is encodeRC for atomics and for changes of mkeys.
func (q *qp) encodeRare(at *byte, pi uint32, wr *uverbs.SendWR) (uint32, error) {
	switch wr.Opcode {
	case uverbs.WRAtomicCmpAndSwp, uverbs.WRAtomicFetchAndAdd:
		if q.uc {
			return 0, uverbs.ErrBadOpcode
		}
	}
	switch wr.Opcode {
	case uverbs.WRAtomicCmpAndSwp:
		return q.encodeAtomic(at, pi, wr, prm.OpcodeAtomicCS, prm.AtomicSeg{SwapAdd: prm.ToBE64(wr.Swap), Compare: prm.ToBE64(wr.CompareAdd)})
	case uverbs.WRAtomicFetchAndAdd:
		return q.encodeAtomic(at, pi, wr, prm.OpcodeAtomicFA, prm.AtomicSeg{SwapAdd: prm.ToBE64(wr.CompareAdd)})
	case uverbs.WRLocalInv:
		return q.encodeUMR(at, pi, wr, wr.InvalidateRKey, uverbs.MWType2, &uverbs.MWBind{})
	case uverbs.WRBindMW:
		b := wr.Bind
		switch {
		case b == nil || b.MW == nil:
			return 0, errNoWindow
		case b.Length > maxBind:
			return 0, errBindLong
		}
		return q.encodeUMR(at, pi, wr, b.OldRKey, b.MW.Type(), b)
	}
	return 0, uverbs.ErrBadOpcode
}

// encodeAtomic writes control, remote address, atomic and data segment: one
// WQEBB. The length that the device writes is 8, whatever the element has.
func (q *qp) encodeAtomic(at *byte, pi uint32, wr *uverbs.SendWR, opcode uint32, operands prm.AtomicSeg) (uint32, error) {
	if wr.Flags&uverbs.SendInline != 0 || len(wr.SGList) != 1 || wr.SGList[0].Length < atomicBytes {
		return 0, errAtomicSGE
	}
	sge := &wr.SGList[0]
	*prm.RAddr(prm.Add(at, prm.SegBytes)) = prm.RAddrSeg{RAddr: prm.ToBE64(wr.RemoteAddr), RKey: prm.ToBE32(wr.RKey)}
	*prm.Atomic(prm.Add(at, 2*prm.SegBytes)) = operands
	*prm.Data(prm.Add(at, 3*prm.SegBytes)) = prm.DataSeg{ByteCount: prm.ToBE32(atomicBytes), LKey: prm.ToBE32(sge.LKey), Addr: prm.ToBE64(sge.Addr)}
	q.control(at, pi, opcode, 4, wr.Flags, 0)
	return 4, nil
}

// encodeUMR writes a WQE that changes the mkey of a memory window: it binds it,
// or frees it if b is empty. The WQE takes two WQEBBs or three, which may be more
// than the queue's size reckons for a request: then it counts as several.
func (q *qp) encodeUMR(at *byte, pi uint32, wr *uverbs.SendWR, key uint32, typ uverbs.MWType, b *uverbs.MWBind) (uint32, error) {
	s := &q.sq
	blocks := uint32(2)
	if b.Length > 0 {
		blocks = 3
	}
	extra := (blocks+s.perWR-1)/s.perWR - 1
	if extra >= s.maxPost {
		return 0, errTinyQueue
	}
	if s.head+extra-s.seenTail >= s.maxPost {
		if s.seenTail = s.tail.Load(); s.head+extra-s.seenTail >= s.maxPost {
			return 0, uverbs.ErrQueueFull
		}
	}

	flags := uint32(prm.UMRInline | prm.UMRTranslationOffset)
	mask := uint64(prm.UMRMaskFree | prm.UMRMaskMKey)
	if typ == uverbs.MWType2 {
		mask |= prm.UMRMaskQPN
	}
	mkey := prm.MKeySeg{QPNMKey: prm.ToBE32(prm.MKeyAnyQPN | b.NewRKey&0xff)}
	klm := uint32(0)
	if b.Length > 0 {
		klm = 4 << 16 // octowords: one KLM, padded
		mask |= prm.UMRMaskLen | prm.UMRMaskStart | prm.UMRMaskLocalWrite | prm.UMRMaskRemoteRead | prm.UMRMaskRemoteWrite | prm.UMRMaskRemoteAtomic
		if typ == uverbs.MWType2 {
			flags |= prm.UMRCheckFree
			mkey.QPNMKey = prm.ToBE32(q.qpn<<8 | b.NewRKey&0xff)
		}
		mkey.Access = prm.ToBE32(mkeyAccess(b.Access))
		if b.Access&uverbs.AccessZeroBased == 0 {
			mkey.Start = prm.ToBE64(b.Addr)
		}
		mkey.Len = prm.ToBE64(b.Length)
	} else {
		if typ == uverbs.MWType2 {
			flags |= prm.UMRCheckQPN
		}
		mkey.Access = prm.ToBE32(prm.MKeyFree)
	}

	*prm.UMRCtrl(prm.Add(at, prm.SegBytes)) = prm.UMRCtrlSeg{Flags: prm.ToBE32(flags), KLM: prm.ToBE32(klm), MKeyMask: prm.ToBE64(mask)}
	*prm.MKey(s.wqebb(pi + 1)) = mkey
	if b.Length > 0 {
		*prm.KLM(s.wqebb(pi + 2)) = prm.KLMSeg{DataSeg: prm.DataSeg{ByteCount: prm.ToBE32(uint32(b.Length)), LKey: prm.ToBE32(b.LKey), Addr: prm.ToBE64(b.Addr)}}
	}
	ds := blocks * prm.WQEBBBytes / prm.SegBytes
	q.control(at, pi, prm.OpcodeUMR, ds, wr.Flags, key)
	s.fence = prm.CtrlSmallFence
	s.head += extra
	return ds, nil
}

func mkeyAccess(a uverbs.AccessFlags) uint32 {
	var v uint32
	if a&uverbs.AccessRemoteWrite != 0 {
		v |= prm.MKeyRemoteWrite
	}
	if a&uverbs.AccessRemoteRead != 0 {
		v |= prm.MKeyRemoteRead
	}
	if a&uverbs.AccessRemoteAtomic != 0 {
		v |= prm.MKeyRemoteAtomic
	}
	return v
}

// wqebb returns the basic block of producer index i.
func (s *sendQueue) wqebb(i uint32) *byte { return prm.Add(s.start, i&(s.entries-1)*prm.WQEBBBytes) }
