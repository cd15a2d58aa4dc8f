package main

import (
	"fmt"
	"os"
)

// limits is what the driver of a half's device cannot do where packets get lost,
// repeated or late. The halves keep to each other's.
type limits struct {
	// NoEmptyRead: an RDMA READ of 0 bytes whose response was lost is never
	// answered again, and the requester gives up.
	NoEmptyRead bool
	// NoLongRead: behind SENDs and WRITEs, READs ask for one packet.
	NoLongRead bool
}

// rxeLimits is what Soft-RoCE cannot do in a kernel of this release. Linux 6.1
// (6.1.192) has neither bug; 6.12 (6.12.117) and 7.3 (7.3.4) have both.
//
// As a responder, rxe keeps 0 as the rkey of a READ of no bytes
// (qp_resp_from_reth in rxe_resp.c), whatever rkey the request has, which needs
// none. When the request comes again, its rkey differs from the one kept, and
// duplicate_request drops it.
//
// As a requester that has seen the first packet of a READ response and not the
// last, rxe takes an acknowledgement of an earlier SEND or WRITE for news of the
// READ (check_psn and check_ack in rxe_comp.c, which look for a NAK there) and
// forgets that it is within a response. That acknowledgement is there because
// rxe itself sent the SEND again, or because the network made it late. The next
// packet of the response then seems to be out of place: rxe completes the READ,
// whose data are missing, with success, warns about itself (rxe_comp.c:827) and
// puts the QP into ERR.
func rxeLimits(release string) limits {
	var major, minor int
	if n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor); n < 2 || major < 6 || major == 6 && minor < 2 {
		return limits{}
	}
	return limits{NoEmptyRead: true, NoLongRead: true}
}

// kernelRelease is the running kernel's, as uname -r prints it.
func kernelRelease() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/osrelease")
	return string(b), err
}

// readSizes is the lengths of the READs of half-alone steps: sizes, but for what
// the half cannot answer that is read from.
func (p *party) readSizes(active bool) []int {
	from := p.limits
	if active {
		from = p.peer.Limits
	}
	all := p.sizes()
	if p.lossy && from.NoEmptyRead {
		return all[1:] // the first is 0
	}
	return all
}

// queuedRead is the length of the READ of this half's round i.
func (p *party) queuedRead(i int) int {
	n := roundLen(i)
	if p.lossy && p.peer.Limits.NoEmptyRead {
		n = max(n, 1)
	}
	if p.lossy && p.limits.NoLongRead {
		n = min(n, p.linkMTU())
	}
	return n
}
