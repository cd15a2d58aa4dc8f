package mlx5sim

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/rrppcc-go/rrppcc/internal/roce"
)

// captureBytes is how much of a capture may wait for its writer.
const captureBytes = 8 << 20

// capture writes a device's packets to a pcap file. The data path appends to
// buf, and a goroutine writes it out.
type capture struct {
	w    io.Writer
	wake chan struct{} // something is in buf, or ending is set
	done chan struct{} // the goroutine has ended

	mu     sync.Mutex // held for moments only: the data path takes it
	buf    []byte     // records that were not written yet
	lost   uint64     // packets that found no room, or no writer
	ending bool
	err    error // of w; nothing is written after it
}

// Capture writes every packet that the device sends or receives by its link to
// w, until stop is called or the device is closed: a pcap file of nanoseconds
// and raw IP packets (LINKTYPE_RAW), which Wireshark and tshark read.
//
// What it shows is the link at the device's port: before the link's faults in
// the packets sent ([Device.SetFaults]), behind them in the packets received.
// So a packet that the link lost on its way out is in the capture, one that it
// lost on its way in is not, and one that it held back has the time when it came.
// IP and UDP headers are those that the ICRC was computed for, identification 0
// and DF, with the traffic class and hop limit that were asked for, or seen, and a
// UDP checksum of 0; of a packet that came in a frame
// ([WithEthernet]) the IP header is its own. ARP is left out. Messages that stay
// within the fabric make no packets.
//
// The device never waits for w. A goroutine writes to it, and packets for which
// its buffer of 8 MiB has no room are counted in Stats.NotCaptured and missing.
// After an error of w nothing more is written to it. stop writes out what is
// left, returns the error of w or says how many packets are missing, and may be
// called again. A Write that does not return keeps stop, and Close of the
// device, from returning. A device without a link has nothing to capture:
// ENODEV.
func (d *Device) Capture(w io.Writer) (stop func() error, err error) {
	d.fab.mu.Lock()
	defer d.fab.mu.Unlock()
	if d.closed || d.link == nil {
		return nil, fmt.Errorf("mlx5sim: capture of %s: the device has no link: %w", d.name, syscall.ENODEV)
	}
	c := d.capture(w)
	return func() error {
		d.fab.mu.Lock()
		if i := slices.Index(d.captures, c); i >= 0 {
			d.captures = slices.Delete(d.captures, i, i+1)
		}
		d.fab.mu.Unlock()
		return c.stop()
	}, nil
}

// capture begins a capture. Caller holds fab.mu.
func (d *Device) capture(w io.Writer) *capture {
	c := &capture{w: w, wake: make(chan struct{}, 1), done: make(chan struct{}), buf: appendPcapHeader(nil)}
	c.wake <- struct{}{}
	go c.run()
	d.captures = append(d.captures, c)
	return c
}

// run writes what is appended.
func (c *capture) run() {
	defer close(c.done)
	var spare []byte
	for range c.wake {
		c.mu.Lock()
		b, ending := c.buf, c.ending
		c.buf = spare[:0]
		c.mu.Unlock()
		if len(b) > 0 {
			n, err := c.w.Write(b)
			if err == nil && n < len(b) {
				err = io.ErrShortWrite
			}
			if err != nil {
				c.mu.Lock()
				c.err = err
				c.mu.Unlock()
				return
			}
		}
		if ending {
			return
		}
		spare = b
	}
}

// notify wakes the goroutine, or has it look again.
func (c *capture) notify() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// stop ends the capture, which nothing is appended to any more.
func (c *capture) stop() error {
	c.mu.Lock()
	c.ending = true
	c.mu.Unlock()
	c.notify()
	<-c.done
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil:
		return fmt.Errorf("mlx5sim: capture: %w", c.err)
	case c.lost > 0:
		return fmt.Errorf("mlx5sim: capture: %d packets are missing: the writer was too slow", c.lost)
	}
	return nil
}

// add appends a packet and returns whether there was room.
func (c *capture) add(at time.Time, src, dst netip.AddrPort, class ipClass, ip, pkt []byte) bool {
	c.mu.Lock()
	ok := c.err == nil && len(c.buf)+pcapRecordBytes+len(pkt) <= captureBytes
	if ok {
		c.buf = appendPcapRecord(c.buf, at, src, dst, class, ip, pkt)
	} else {
		c.lost++
	}
	c.mu.Unlock()
	return ok
}

// captureSent captures packets that leave.
func (d *Device) captureSent(runs []run) {
	at, src := time.Now(), netip.AddrPortFrom(d.addr, roce.Port)
	for _, c := range d.captures {
		for i := range runs {
			for pkt := range slices.Chunk(runs[i].b, runs[i].size) {
				if !c.add(at, src, runs[i].to, runs[i].class, nil, pkt) {
					d.stats.NotCaptured++
				}
			}
		}
		c.notify()
	}
}

// captureReceived captures a packet that arrived.
func (d *Device) captureReceived(from netip.AddrPort, class ipClass, ip, pkt []byte) {
	at, dst := time.Now(), netip.AddrPortFrom(d.addr, roce.Port)
	for _, c := range d.captures {
		if !c.add(at, from, dst, class, ip, pkt) {
			d.stats.NotCaptured++
		}
		c.notify()
	}
}

// stopCaptures ends the captures of a closed device and returns the error of
// the one that WithPcap asked for; Capture's callers learn theirs by stop.
// Caller must not hold fab.mu: writers may take their time.
func (d *Device) stopCaptures() error {
	d.fab.mu.Lock()
	all := d.captures
	d.captures = nil
	d.fab.mu.Unlock()
	var errs []error
	for _, c := range all {
		if err := c.stop(); c == d.pcap {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
