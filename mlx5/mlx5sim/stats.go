package mlx5sim

// Stats are a device's counters since [New]. They count what really happened
// to packets and events; nothing is sampled.
type Stats struct {
	TxPackets    uint64 // packets given to the wire, retransmissions included
	RxPackets    uint64 // packets taken from the wire, dropped ones included
	LocalMsgs    uint64 // messages executed within the process, without the wire
	Retransmits  uint64 // packets sent again
	Timeouts     uint64 // ACK timers that expired
	RNRNaks      uint64 // RNR NAKs sent or raised: no receive was posted
	SequenceNaks uint64 // NAKs for a gap in the PSNs
	NotCaptured  uint64 // packets missing in captures
	Drops        Drops

	FaultsOut, FaultsIn FaultStats // what SetFaults and Partition did
}

// Drops counts by reason what was discarded without an error to its sender.
type Drops struct {
	Malformed   uint64 // not a RoCEv2 packet of the profile, or lengths that contradict
	BadICRC     uint64
	NoQP        uint64 // destination QPN does not exist, or is of another transport
	QPState     uint64 // destination QP does not take packets in its state
	BadQKey     uint64
	BadPKey     uint64
	BadSource   uint64 // packet of a connection from an address that is not the connected peer's
	NoReceive   uint64 // UD or UC without a posted receive
	TooLong     uint64 // UD that does not fit the posted receive, or beyond the MTU
	Refused     uint64 // UC message that its QP or a key does not allow
	Incomplete  uint64 // UC message of which a packet is missing
	Duplicate   uint64 // PSN was seen before
	OutOfOrder  uint64 // PSN ahead of the expected one
	Unreachable uint64 // no route: no such device in the fabric and no link
	PortDown    uint64 // the port was down, at either end
	LinkTx      uint64 // the socket refused the packet
	Events      uint64 // event file was full
	Doorbell    uint64 // doorbell for a QP that is not this UAR's
}

// Stats returns a snapshot of the counters.
func (d *Device) Stats() Stats {
	d.fab.mu.Lock()
	defer d.fab.mu.Unlock()
	return d.stats
}
