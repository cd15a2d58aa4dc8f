package mlx5sim

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"
)

// Direction is a direction of a device's link, or both.
type Direction uint8

// Directions, as the device sees them.
const (
	Outbound Direction = 1 << iota
	Inbound
	BothWays = Outbound | Inbound
)

// Faults says what happens to packets in one direction of a device's link. The
// zero Faults is a link that does nothing to them.
//
// The probabilities are per packet, from 0 to 1, and independent of each other.
type Faults struct {
	Loss      float64 // it is lost
	Duplicate float64 // it arrives twice
	// Reorder makes a packet late by a random time of up to four times Delay
	// and Jitter, and of up to 100 µs at least, so that others overtake it.
	Reorder float64
	// Corrupt flips one bit that the ICRC covers. The receiver counts the packet
	// in Drops.BadICRC or, if it is no packet any more, in Drops.Malformed.
	Corrupt float64

	Delay time.Duration // each packet takes this long
	// Jitter adds a random time below it to each packet's delay. Packets keep
	// their order all the same; Reorder changes it.
	Jitter time.Duration
	// Bandwidth is in bits per second of UDP payload; 0 has no bound. What
	// comes faster waits.
	Bandwidth int64
	// Buffer is how many bytes wait at most for Delay, Jitter, Reorder and
	// Bandwidth, together; what comes beyond is lost. 0 is 16 MiB.
	Buffer int
}

// FaultStats counts what was done to the packets of one direction.
type FaultStats struct {
	Lost        uint64 // Faults.Loss
	Duplicated  uint64 // Faults.Duplicate
	Reordered   uint64 // Faults.Reorder
	Corrupted   uint64 // Faults.Corrupt
	Overflowed  uint64 // lost for want of Faults.Buffer
	Partitioned uint64 // lost by [Device.Partition]
}

const (
	defaultFaultBuffer = 16 << 20
	maxFaultBuffer     = 1 << 30
	minBandwidth       = 1000
	minLateness        = 100 * time.Microsecond
)

// check refuses what no link can do.
func (f *Faults) check() error {
	for _, p := range [...]struct {
		name string
		v    float64
	}{{"Loss", f.Loss}, {"Duplicate", f.Duplicate}, {"Reorder", f.Reorder}, {"Corrupt", f.Corrupt}} {
		if !(p.v >= 0 && p.v <= 1) {
			return fmt.Errorf("mlx5sim: Faults.%s is %v, and not a probability from 0 to 1", p.name, p.v)
		}
	}
	const most = time.Hour // keeps sums of times far from their end
	for _, x := range [...]struct {
		name string
		v    time.Duration
	}{{"Delay", f.Delay}, {"Jitter", f.Jitter}} {
		if x.v < 0 || x.v > most {
			return fmt.Errorf("mlx5sim: Faults.%s is %v; 0 to %v is possible", x.name, x.v, most)
		}
	}
	if f.Bandwidth != 0 && f.Bandwidth < minBandwidth {
		return fmt.Errorf("mlx5sim: Faults.Bandwidth is %d; 0 or at least %d bit/s is possible", f.Bandwidth, minBandwidth)
	}
	if f.Buffer < 0 || f.Buffer > maxFaultBuffer {
		return fmt.Errorf("mlx5sim: Faults.Buffer is %d; 0 to %d bytes are possible", f.Buffer, maxFaultBuffer)
	}
	return nil
}

func (dir Direction) check() error {
	if dir == 0 || dir&^BothWays != 0 {
		return fmt.Errorf("mlx5sim: %d is not a direction", dir)
	}
	return nil
}

// SetFaults has the device's link treat packets as f says from now on, in place
// of what was set before. Packets under way stay so. The zero Faults ends it. It
// may be called at any time from any goroutine, and works in virtual time
// (testing/synctest) as in real time.
//
// All chance comes from seed: what happens to the n-th packet after the call,
// in each direction, depends on f, the seed and n alone. With seed 0 a random
// seed is drawn. SetFaults returns the seed in use: print it when a test fails,
// and give it to replay the failure.
//
// Messages within the process make no packets: faults meet what goes by a link,
// so put devices in fabrics of their own.
func (d *Device) SetFaults(dir Direction, f Faults, seed uint64) (uint64, error) {
	if err := dir.check(); err != nil {
		return 0, err
	}
	if err := f.check(); err != nil {
		return 0, err
	}
	for seed == 0 {
		seed = rand.Uint64()
	}
	d.impair(dir, func(im *impairment, stream uint64) {
		im.f = f
		im.window = max(4*(f.Delay+f.Jitter), minLateness)
		im.buffer = f.Buffer
		if im.buffer == 0 {
			im.buffer = defaultFaultBuffer
		}
		im.rng.Seed(seed, stream)
		im.busy = 0
	})
	return seed, nil
}

// Partition loses all packets between the device and peers, in place of those
// that were named before; without peers it heals. What was under way arrives
// still. It may be called at any time from any goroutine. As with SetFaults,
// only what goes by a link is lost.
func (d *Device) Partition(dir Direction, peers ...netip.Addr) error {
	if err := dir.check(); err != nil {
		return err
	}
	for _, p := range peers {
		if !p.IsValid() {
			return fmt.Errorf("mlx5sim: partition from no address")
		}
	}
	d.impair(dir, func(im *impairment, _ uint64) {
		im.cut = nil
		if len(peers) > 0 {
			im.cut = make(map[netip.Addr]struct{}, len(peers))
		}
		for _, p := range peers {
			im.cut[p.Unmap()] = struct{}{}
		}
	})
	return nil
}

// impair changes the impairments of dir's directions, and drops those that do
// nothing any more.
func (d *Device) impair(dir Direction, set func(im *impairment, stream uint64)) {
	d.fab.mu.Lock()
	defer d.fab.mu.Unlock()
	if d.closed {
		return
	}
	for _, one := range [...]Direction{Outbound, Inbound} {
		if dir&one == 0 {
			continue
		}
		at := d.impairment(one)
		if *at == nil {
			*at = &impairment{dev: d, dir: one}
		}
		set(*at, uint64(one))
		(*at).retire()
	}
}

// impairment is where the impairment of one direction stands, which is nil if
// the link does nothing to packets.
func (d *Device) impairment(dir Direction) **impairment {
	if dir == Inbound {
		return &d.in
	}
	return &d.out
}
