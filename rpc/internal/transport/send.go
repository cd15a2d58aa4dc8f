package transport

import (
	"errors"
	"fmt"

	"github.com/rrppcc-go/rrppcc/rpc/internal/engine"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// maxFullPolls bounds how often the send CQ is polled for room in the send
// queue before the device counts as broken.
const maxFullPolls = 1 << 22

// postTx posts all of e.Tx. Datagrams to a peer that is gone are dropped.
func (t *Transport) postTx(e *engine.Engine, now int64) error {
	for i := 0; i < len(e.Tx); {
		k := 0
		for ; i < len(e.Tx) && k < sendBurst; i++ {
			if t.prepare(k, &e.Tx[i]) {
				k++
			} else {
				e.TxDone(e.Tx[i].Token)
			}
		}
		if err := t.postUD(e, now, t.wrs[:k]); err != nil {
			return err
		}
	}
	return nil
}

// prepare fills work request k from tx. It reports false if the peer is gone.
func (t *Transport) prepare(k int, tx *engine.Tx) bool {
	p := t.peer(tx.Dest)
	if p == nil {
		return false
	}
	wr := &t.wrs[k]
	sges := &t.sges[k]
	*wr = uverbs.SendWR{WRID: uint64(tx.Token), Opcode: uverbs.WRSend, AH: p.ah, RemoteQPN: p.remote.QPN, RemoteQKey: p.remote.QKey}
	n := 1
	if tx.Data.Len > 0 {
		sges[1] = uverbs.SGE{Addr: tx.Data.Addr, Length: tx.Data.Len, LKey: tx.Data.LKey}
		n = 2
	}
	wr.SGList = sges[:n]
	if int(tx.HeadLen+tx.Data.Len) <= t.inline && tx.Token == 0 {
		sges[0] = uverbs.SGE{Addr: headAddr(tx), Length: tx.HeadLen}
		wr.Flags = uverbs.SendInline
	} else {
		slot := t.headNext & t.headMask
		t.headNext++
		off := int(slot) * headBytes
		copy(t.heads.Full()[off:off+headBytes], tx.Head[:tx.HeadLen])
		sges[0] = uverbs.SGE{Addr: t.heads.Addr() + uint64(off), Length: tx.HeadLen, LKey: t.heads.LKey()}
	}
	if tx.Token != 0 {
		t.owed++
	}
	t.since++
	if tx.Token != 0 || t.since >= signalEvery {
		wr.Flags |= uverbs.SendSignaled
		t.since = 0
	}
	return true
}

// postUD posts wrs, making room in the send queue by polling its completions.
func (t *Transport) postUD(e *engine.Engine, now int64, wrs []uverbs.SendWR) error {
	for tries := 0; len(wrs) > 0; tries++ {
		n, err := t.ud.PostSend(wrs)
		wrs = wrs[n:]
		if err == nil {
			continue
		}
		if !errors.Is(err, uverbs.ErrQueueFull) || tries > maxFullPolls {
			for i := range wrs {
				if wrs[i].WRID != 0 {
					t.owed--
				}
				e.TxDone(uint32(wrs[i].WRID))
			}
			return fmt.Errorf("post send on the UD QP: %w", err)
		}
		if _, err := t.pollSend(e, now); err != nil {
			return err
		}
	}
	return nil
}
