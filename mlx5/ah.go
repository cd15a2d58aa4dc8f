package mlx5

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"syscall"

	"github.com/rrppcc-go/rrppcc/internal/kernel"
	"github.com/rrppcc-go/rrppcc/mlx5/internal/abi"
	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// addressHandle is what uverbs.AH.Driver returns: the address vector as it goes
// into a WQE, but for the destination's QPN and QKey.
type addressHandle struct {
	ctx *contextDriver
	av  prm.AV
}

// stat_rate of an address vector by enum ibv_rate: the nearest rate that the
// device can pace to and that is not below the one asked, 0 for no limit.
var statRates = [...]uint8{
	2:  7,  // 2.5 Gb/s
	3:  8,  // 10
	4:  9,  // 30
	5:  10, // 5
	6:  11, // 20
	7:  12, // 40
	8:  13, // 60
	9:  14, // 80
	10: 15, // 120
	11: 11, // 14, as 20
	12: 13, // 56, as 60
	13: 15, // 112, as 120
	15: 9,  // 25, as 30
	16: 15, // 100, as 120
	19: 9,  // 28, as 30
	20: 13, // 50, as 60
}

const flowLabelMask = 1<<20 - 1

// udpSourcePort derives the UDP source port of RoCEv2 from the flow label, so
// that a flow keeps its path through ECMP; a flow label of 0 draws one.
func udpSourcePort(flowLabel uint32) uint16 {
	fl := flowLabel & flowLabelMask
	if fl == 0 {
		return 0xc000 | uint16(rand.Uint32N(0x4000))
	}
	return 0xc000 | uint16(fl&0x3fff^fl>>14)
}

func (d *contextDriver) CreateAH(attr *uverbs.AHAttr, issue func(uhwOut []byte) error) (any, error) {
	if attr.Port == 0 || int(attr.Port) > d.lim.ports {
		return nil, fmt.Errorf("port %d of %d: %w", attr.Port, d.lim.ports, syscall.EINVAL)
	}
	link, err := d.linkLayer(attr.Port)
	if err != nil {
		return nil, err
	}
	var rate uint8
	if int(attr.StaticRate) < len(statRates) {
		rate = statRates[attr.StaticRate]
	}

	ah := &addressHandle{ctx: d}
	var grh uint32
	if attr.IsGlobal {
		ah.av.GRHGIDFL = prm.ToBE32(uint32(attr.SGIDIndex)<<20 | attr.FlowLabel&flowLabelMask)
		ah.av.RMACLoHop = prm.ToBE32(uint32(attr.TrafficClass)<<8 | uint32(attr.HopLimit))
		ah.av.RGID = [2]prm.BE64{
			prm.ToBE64(binary.BigEndian.Uint64(attr.DGID[:8])),
			prm.ToBE64(binary.BigEndian.Uint64(attr.DGID[8:])),
		}
		grh = prm.AVGRH
	}
	if link != uverbs.LinkLayerEthernet {
		ah.av.StatSLLID = prm.ToBE32(uint32(rate)<<28 | uint32(attr.SL&0xf)<<24 | uint32(attr.SrcPathBits&0x7f)<<16 | uint32(attr.DLID))
		ah.av.GRHGIDFL |= prm.ToBE32(grh)
		return ah, nil
	}

	if !attr.IsGlobal {
		return nil, fmt.Errorf("RoCE needs a GRH (IsGlobal): %w", syscall.EINVAL)
	}
	if !d.lim.ahFromKernel {
		return nil, fmt.Errorf("the kernel does not resolve addresses: %w", syscall.EOPNOTSUPP)
	}
	sgid, err := d.ctx.QueryGID(attr.Port, int(attr.SGIDIndex))
	if err != nil {
		return nil, err
	}
	var sport uint16
	if sgid.Type == uverbs.GIDTypeRoCEv2 {
		sport = udpSourcePort(attr.FlowLabel)
	}
	ah.av.StatSLLID = prm.ToBE32(uint32(rate)<<28 | uint32(attr.SL&0x7)<<25 | uint32(sport))

	resp := new(abi.Mlx5_ib_create_ah_resp)
	if err := issue(kernel.Bytes(resp)); err != nil {
		return nil, err
	}
	ah.av.RMACHi = prm.ToBE32(binary.BigEndian.Uint32(resp.Dmac[:4]))
	ah.av.RMACLoHop |= prm.ToBE32(uint32(binary.BigEndian.Uint16(resp.Dmac[4:])) << 16)
	return ah, nil
}
