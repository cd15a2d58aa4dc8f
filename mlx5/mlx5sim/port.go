package mlx5sim

const (
	portDown     = 1 // IB_PORT_DOWN
	physDisabled = 3 // IB_PORT_PHYS_STATE_DISABLED
)

// SetPortDown takes the port down, as pulling the cable does: packets are
// dropped in both directions, RC QPs retry until their budget is spent, the
// port's state is DOWN, and the async event PORT_ERR tells every open context.
// It does nothing if the port is down already. It may be called from any
// goroutine.
func (d *Device) SetPortDown() { d.setPort(true) }

// SetPortUp brings the port up again, with the async event PORT_ACTIVE. It
// does nothing if the port is up already. It may be called from any goroutine.
func (d *Device) SetPortUp() { d.setPort(false) }

func (d *Device) setPort(down bool) {
	d.fab.mu.Lock()
	defer d.fab.mu.Unlock()
	d.turnPort(down)
}

// turnPort is setPort for who holds fab.mu.
func (d *Device) turnPort(down bool) {
	if d.closed || d.down == down {
		return
	}
	d.down = down
	typ := uint32(eventPortActive)
	if down {
		typ = eventPortErr
	}
	for f := range d.files {
		f.raise(1, typ, nil) // the element is the port's number
	}
}

// portState returns the logical and the physical state of the port.
func (d *Device) portState() (state, phys uint8) {
	if d.down {
		return portDown, physDisabled
	}
	return portActive, physLinkUp
}

func (d *Device) isDown() bool {
	d.fab.mu.Lock()
	defer d.fab.mu.Unlock()
	return d.down
}
