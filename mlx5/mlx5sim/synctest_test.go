//go:build linux

package mlx5sim_test

import (
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// TestFaultsOfPublicDevicesInVirtualTime has two devices on a pipe, as a user of
// the package can.
func TestFaultsOfPublicDevicesInVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := net.Pipe()
		device := func(addr string, frames net.Conn) *mlx5sim.Device {
			d, err := mlx5sim.New(mlx5sim.WithFabric(mlx5sim.NewFabric()), mlx5sim.WithAddr(netip.MustParseAddr(addr)), mlx5sim.WithEthernet(frames))
			check(t, err)
			t.Cleanup(func() { check(t, d.Close()) })
			return d
		}
		a := newEnd(t, device("10.0.0.1", one), uverbs.QPTypeRC, 64)
		b := newEnd(t, device("10.0.0.2", two), uverbs.QPTypeRC, 64)
		slowConnect(a, b, 18)
		const delay = 3 * time.Second
		_, err := a.sim.SetFaults(mlx5sim.Outbound, mlx5sim.Faults{Delay: delay}, 0)
		check(t, err)
		ma, mb := a.mr(64, fullMR), b.mr(64, fullMR)
		fill(ma, 1)
		// The ACK timer of 1 s makes repetitions: duplicates, and nothing worse.
		a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRRDMAWrite, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{ma.SGE(0, 64)}, RemoteAddr: mb.Addr(), RKey: mb.RKey()})
		time.Sleep(delay - time.Millisecond)
		synctest.Wait()
		if wcs := a.poll(a.sendCQ); len(wcs) != 0 || b.sim.Stats().RxPackets != 0 {
			t.Errorf("%+v before the delay is over", wcs)
		}
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		a.want(a.sendCQ, outcome{1, 0})
		if string(ma.Bytes()) != string(mb.Bytes()) || a.sim.Stats().Retransmits == 0 {
			t.Errorf("data differ, or the delay had no effect: %+v", a.sim.Stats())
		}
	})
}
