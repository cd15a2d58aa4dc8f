package mlx5sim

import (
	"crypto/rand"
	"syscall"
)

// InfiniBand's local addresses. A subnet manager gives every port a LID of its
// own; the first one here is the subnet manager's port, which is no device.
const (
	smLID   = 1
	lastLID = 0xbfff // of unicast; above are multicast groups, and the permissive LID
)

// infiniband reports whether the port's link layer is InfiniBand.
func (d *Device) infiniband() bool { return d.opt.infiniband }

// randomMAC draws what the MAC address is on Ethernet: the part of the port's GUID
// that is its own.
func randomMAC() [6]byte {
	m := [6]byte{0x02, 0x5c}
	rand.Read(m[2:]) // never fails
	return m
}

// subnetPrefix is the GID prefix of a subnet whose manager was told no other.
var subnetPrefix = [8]byte{0xfe, 0x80}

// portGID is entry 0 of an InfiniBand port's GID table: prefix and GUID.
func (d *Device) portGID() (gid [16]byte) {
	guid := d.nodeGUID()
	copy(gid[:8], subnetPrefix[:])
	copy(gid[8:], guid[:])
	return gid
}

// joinSubnet gives d a LID, as a subnet manager would, unless none is left or
// another port has its GUID. Caller holds mu.
func (fab *Fabric) joinSubnet(d *Device) bool {
	for _, other := range fab.byLID {
		if other.mac == d.mac {
			return false
		}
	}
	// On from the last one given: who still sends to a port that is gone shall not
	// meet another.
	for range lastLID - smLID {
		if fab.lastLID++; fab.lastLID > lastLID || fab.lastLID <= smLID {
			fab.lastLID = smLID + 1
		}
		if fab.byLID[fab.lastLID] == nil {
			d.lid = fab.lastLID
			fab.byLID[d.lid] = d
			return true
		}
	}
	return false
}

// leaveSubnet undoes joinSubnet. Caller holds mu.
func (fab *Fabric) leaveSubnet(d *Device) {
	if fab.byLID[d.lid] == d {
		delete(fab.byLID, d.lid)
	}
}

// destination is the device of the fabric that av leads to from d, nil if there
// is none. Ports of the two link layers do not meet: one knows GIDs, the other
// LIDs. A port drops a packet whose GRH names another's GID. Caller holds fab.mu.
func (d *Device) destination(av *addressVector) *Device {
	if !d.infiniband() {
		return d.fab.byGID[av.dgid]
	}
	to := d.fab.byLID[av.dlid]
	if to == nil || av.isGlobal && to.gids[0].gid != av.dgid {
		return nil
	}
	return to
}

// resolveLID checks an address vector of an InfiniBand port as the kernel does.
// Where the LID leads is not the kernel's to know. Of an address without a GRH
// what belongs to the GRH is forgotten. Caller holds fab.mu.
func (d *Device) resolveLID(av *addressVector) error {
	if av.port != 1 {
		return syscall.EINVAL
	}
	av.sl &= 0xf
	av.srcPathBits &= 0x7f
	if !av.isGlobal {
		*av = addressVector{dlid: av.dlid, srcPathBits: av.srcPathBits, sl: av.sl, port: av.port}
		return nil
	}
	switch {
	case av.sgidIndex >= gidTableLen:
		return syscall.EINVAL
	case int(av.sgidIndex) >= len(d.gids):
		return syscall.ENODATA
	}
	return nil
}

// asInfiniBand reads the address vector of a WQE as a port of that link layer
// does: it has a LID where Ethernet has the UDP source port, another place for the
// service level, and a bit that says whether there is a GRH.
func (av *udAV) asInfiniBand() {
	av.dlid = av.sport
	av.sl = av.rateSL & 0xf
	av.srcPathBits = av.pathBits & 0x7f
	av.isGlobal = av.hasGRH
}
