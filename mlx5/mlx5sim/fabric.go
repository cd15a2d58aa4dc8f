package mlx5sim

// NewFabric returns an empty fabric. Put devices in it with [WithFabric].
func NewFabric() *Fabric {
	return &Fabric{byGID: make(map[[16]byte]*Device), byLID: make(map[uint16]*Device)}
}

var defaultFabric = NewFabric()

// join makes d reachable in its fabric, unless one of its GIDs is taken.
// Caller holds mu.
func (fab *Fabric) join(d *Device) bool {
	if d.infiniband() {
		return fab.joinSubnet(d)
	}
	for _, g := range d.gids {
		if other := fab.byGID[g.gid]; other != nil && other != d {
			return false
		}
	}
	for _, g := range d.gids {
		fab.byGID[g.gid] = d
	}
	return true
}

// leave undoes join. Caller holds mu.
func (fab *Fabric) leave(d *Device) {
	if d.infiniband() {
		fab.leaveSubnet(d)
		return
	}
	for _, g := range d.gids {
		if fab.byGID[g.gid] == d {
			delete(fab.byGID, g.gid)
		}
	}
}
