package msgbuf

// Access says what the device may do with a pool's memory. Nothing is ever
// registered as remote-writable.
type Access uint8

const (
	// Local lets the device read and write on behalf of local work requests.
	Local Access = iota
	// RemoteRead also lets connected peers that know the rkey read, or those to
	// which a memory window is bound, as the Registrar has it.
	RemoteRead
)

func (a Access) String() string {
	switch a {
	case Local:
		return "local"
	case RemoteRead:
		return "remote-read"
	}
	return "unknown"
}

// Registrar makes memory known to a device; a protection domain behind a small
// adapter is one.
//
// Register is called on the goroutine that allocates. The memory stays mapped
// and in place until the Registration has been closed successfully.
type Registrar interface {
	Register(mem []byte, access Access) (Registration, error)
}

// Registration is one registered region.
type Registration interface {
	// LKey is the key by which local work requests name the region.
	LKey() uint32
	// RKey is the key by which peers name the region.
	RKey() uint32
	// Close deregisters the region. After an error the region counts as still
	// registered, and Close may be called again.
	Close() error
}
