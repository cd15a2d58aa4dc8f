package main

import (
	"fmt"
	"net/netip"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

// stepDatagrams sends datagrams of all lengths, in groups that fit any queue on
// the way. None may get lost: nothing here is full.
func stepDatagrams(p *party, active bool) error {
	mtu := min(p.mtu, p.peer.MTU).Bytes()
	sizes := []int{0, 1, 2, 3, 4, 40, 517, mtu - 1, mtu}
	const groups, span = 12, 8192
	for g := range groups {
		for i, n := range sizes {
			if active {
				p.fill(outAt+i*span, n, uint32(g*100+i))
				continue
			}
			p.poison(inAt+i*span, grhBytes+n)
			if err := recv(p.ud, uint64(i), p.sge(inAt+i*span, grhBytes+n)); err != nil {
				return err
			}
		}
		if err := p.meet("posted"); err != nil {
			return err
		}
		if active {
			for i, n := range sizes {
				wr := uverbs.SendWR{WRID: uint64(i), Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{p.sge(outAt+i*span, n)},
					AH: p.ah, RemoteQPN: p.peer.UD, RemoteQKey: qkey}
				if (g+i)%3 == 0 {
					wr.Opcode, wr.ImmData = uverbs.WRSendWithImm, uint32(g<<16|i)
				}
				if err := post(p.ud, wr); err != nil {
					return err
				}
				if err := p.sent(uint64(i), uverbs.WCSend); err != nil {
					return err
				}
			}
			continue
		}
		for i, n := range sizes {
			wc, err := p.received(uint64(i), uverbs.WCRecv, grhBytes+n)
			if err != nil {
				return err
			}
			imm := (g+i)%3 == 0
			if wc.SrcQP != p.peer.UD || wc.Flags&uverbs.WCGRH == 0 || imm != (wc.Flags&uverbs.WCWithImm != 0) || imm && wc.ImmData != uint32(g<<16|i) {
				return fmt.Errorf("datagram of %d bytes: %+v", n, wc)
			}
			if err := p.networkHeader(p.mem(inAt+i*span, grhBytes), n, imm); err != nil {
				return fmt.Errorf("datagram of %d bytes: %w", n, err)
			}
			if err := p.holds(inAt+i*span+grhBytes, n, uint32(g*100+i)); err != nil {
				return fmt.Errorf("datagram of %d bytes: %w", n, err)
			}
		}
	}
	return nil
}

// networkHeader checks the IPv4 header in front of a datagram. What stands
// before it is unspecified.
func (p *party) networkHeader(b []byte, n int, imm bool) error {
	ip := b[20:]
	length := 20 + 8 + 12 + 8 + (n+3)&^3 + 4 // IP, UDP, BTH, DETH, data and pad, ICRC
	if imm {
		length += 4
	}
	src, dst := netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:]))
	if ip[0] != 0x45 || int(ip[2])<<8|int(ip[3]) != length || ip[6]&0x40 == 0 || ip[8] == 0 || ip[9] != 17 ||
		src != p.peer.GID.Addr() || dst != p.gid.GID.Addr() {
		return fmt.Errorf("network header %x, want IPv4 of %d bytes from %v to %v", ip, length, p.peer.GID.Addr(), p.gid.GID.Addr())
	}
	return nil
}
