package rxe

import (
	"net"

	"github.com/rrppcc-go/rrppcc/uverbs"
	"github.com/rrppcc-go/rrppcc/uverbs/rxe/internal/abi"
)

// addressHandle is what uverbs.AH.Driver returns: the address vector that goes
// into each work request.
//
// Since Linux 5.15 a request can name the kernel's handle instead. The kernel
// looks at that when it gets to the request, in a thread of its own from 6.12 on;
// when the handle is gone by then it breaks the QP, with all that is in it. A
// vector in the request itself, which all kernels take, needs no handle any more.
type addressHandle struct {
	ctx *contextDriver
	av  abi.Rxe_av
}

func (d *contextDriver) CreateAH(attr *uverbs.AHAttr, issue func(uhwOut []byte) error) (any, error) {
	if err := issue(nil); err != nil {
		return nil, err
	}
	ah := &addressHandle{ctx: d}
	sgid, err := d.ctx.QueryGID(attr.Port, int(attr.SGIDIndex))
	if err != nil {
		return nil, err
	}
	ah.av = addressVector(attr, sgid.GID)
	ah.av.Dmac, err = d.ownMAC(attr.DGID)
	if err != nil {
		return nil, err
	}
	return ah, nil
}

// addressVector is what the kernel wants in the WQE. It finds the route by the IP
// addresses alone.
func addressVector(attr *uverbs.AHAttr, sgid uverbs.GID) abi.Rxe_av {
	av := abi.Rxe_av{
		Port_num: attr.Port,
		Grh: abi.Rxe_global_route{Dgid: attr.DGID, Flow_label: attr.FlowLabel, Sgid_index: attr.SGIDIndex,
			Hop_limit: attr.HopLimit, Traffic_class: attr.TrafficClass},
		Sgid_addr: socketAddress(sgid),
		Dgid_addr: socketAddress(attr.DGID),
	}
	av.Network_type = abi.RXE_NETWORK_TYPE_IPV6
	if attr.DGID.Addr().Is4() {
		av.Network_type = abi.RXE_NETWORK_TYPE_IPV4
	}
	return av
}

const (
	inet  = 2 // AF_INET
	inet6 = 10
)

func socketAddress(g uverbs.GID) abi.Rxe_sockaddr {
	if a := g.Addr(); a.Is4() {
		return abi.Rxe_sockaddr{Family: inet, Addr4: a.As4()}
	}
	return abi.Rxe_sockaddr{Family: inet6, Addr6: g}
}

// ownMAC returns the MAC address of the interface that gid is an address of, by
// which the kernel knows a packet to itself; zero for another host's gid.
func (d *contextDriver) ownMAC(gid uverbs.GID) (mac [6]uint8, err error) {
	table, err := d.ctx.QueryGIDTable()
	if err != nil {
		return mac, err
	}
	for _, e := range table {
		if e.GID != gid || e.IfIndex == 0 {
			continue
		}
		if dev, err := net.InterfaceByIndex(e.IfIndex); err == nil {
			copy(mac[:], dev.HardwareAddr)
		}
	}
	return mac, nil
}
