package mlx5sim

// NewFabric returns an empty fabric. Put devices in it with [WithFabric].
func NewFabric() *Fabric { return &Fabric{byGID: make(map[[16]byte]*Device)} }

var defaultFabric = NewFabric()

// join makes d reachable in its fabric, unless one of its GIDs is taken.
// Caller holds mu.
func (fab *Fabric) join(d *Device) bool {
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
	for _, g := range d.gids {
		if fab.byGID[g.gid] == d {
			delete(fab.byGID, g.gid)
		}
	}
}
