//go:build linux

package mlx5sim_test

import (
	"bytes"
	"testing"

	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

func TestByWireSendsPacketsToTheDeviceItself(t *testing.T) {
	var pcap bytes.Buffer
	d, err := mlx5sim.New(mlx5sim.ByWire(), mlx5sim.WithPcap(&pcap), mlx5sim.WithFabric(mlx5sim.NewFabric()))
	check(t, err)
	closed := false
	defer func() {
		if !closed {
			d.Close()
		}
	}()
	t.Run("traffic", func(t *testing.T) {
		a, b := newEnd(t, d, uverbs.QPTypeRC, 16), newEnd(t, d, uverbs.QPTypeRC, 16)
		rcConnect(a, b)
		src, dst := a.mr(3000, fullMR), b.mr(3000, fullMR)
		fill(src, 5)
		b.recv(1, dst.SGE(0, 3000))
		a.send(uverbs.SendWR{WRID: 2, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, 3000)}})
		if wc := a.wait(a.sendCQ, 1); wc[0].Status != uverbs.WCSuccess {
			t.Error(wc[0].Status)
		}
		if wc := b.wait(b.recvCQ, 1); wc[0].Status != uverbs.WCSuccess || !bytes.Equal(dst.Bytes(), src.Bytes()) {
			t.Errorf("%v, or the data differ", wc[0].Status)
		}
	})
	if tx, rx := d.Stats().TxPackets, d.Stats().RxPackets; tx < 4 || rx < 4 { // three of the message and an acknowledgement
		t.Errorf("%d packets sent, %d received", tx, rx)
	}
	closed = true
	check(t, d.Close())
	if n := bytes.Count(pcap.Bytes(), []byte{0x45, 0}); n < 8 { // each goes out and comes in
		t.Errorf("a capture of %d bytes with %d IP headers", pcap.Len(), n)
	}
}

func TestByWireNeedsALink(t *testing.T) {
	if d, err := mlx5sim.New(mlx5sim.ByWire(), mlx5sim.InProcess()); err == nil {
		d.Close()
		t.Error("a device has both no link and nothing but a link")
	}
}
