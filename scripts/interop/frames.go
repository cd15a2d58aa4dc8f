package main

import (
	"io"
	"math/rand/v2"
	"net"
	"sync"
)

// dgram is the host's end of QEMU's "-netdev dgram" on sockets in the file
// system: one datagram is one frame, and a full queue makes the sender wait.
type dgram struct {
	*net.UnixConn
	to *net.UnixAddr // may appear later, and go away
}

func listenDgram(own, peer string) (*dgram, error) {
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: own, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	return &dgram{c, &net.UnixAddr{Name: peer, Net: "unixgram"}}, nil
}

func (d *dgram) Write(b []byte) (int, error) { return d.WriteToUnix(b, d.to) }

// faults loses, repeats and reorders IPv4 frames in both directions while it is
// told to. ARP always gets through, or the run would take longer.
type faults struct {
	io.ReadWriteCloser

	mu  sync.Mutex
	on  bool
	rng *rand.Rand
	out fate
	in  fate
}

// fate is what happens to the frames of one direction.
type fate struct {
	again []byte // a frame that comes once more
	late  []byte // a frame that comes behind the next one
	lost  int
	odd   int // repeated, or late
}

// Of a hundred frames.
const (
	losePercent   = 2
	repeatPercent = 1
	latePercent   = 1
)

func newFaults(frames io.ReadWriteCloser) *faults { return &faults{ReadWriteCloser: frames} }

// set turns faults on, from a seed, or off. It returns how many frames were
// lost, and how many repeated or late, since it was last called.
func (f *faults) set(on bool) (lost, odd int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	lost, odd = f.out.lost+f.in.lost, f.out.odd+f.in.odd
	f.on, f.rng = on, rand.New(rand.NewPCG(1, 2))
	f.out, f.in = fate{}, fate{}
	return lost, odd
}

// judge returns the frames that go on when b comes, in order.
func (f *faults) judge(d *fate, b []byte) (now [3][]byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.on || len(b) < 14 || b[12] != 8 || b[13] != 0 {
		now[0] = b
		return now
	}
	n := f.rng.IntN(100)
	late := d.late
	d.late = nil
	switch {
	case n < losePercent:
		d.lost++
	case n < losePercent+repeatPercent:
		d.odd++
		now[0], now[1] = b, append([]byte(nil), b...)
	case n < losePercent+repeatPercent+latePercent && late == nil:
		d.odd++
		d.late = append([]byte(nil), b...)
	default:
		now[0] = b
	}
	now[2] = late
	return now
}

func (f *faults) Write(b []byte) (int, error) {
	for _, p := range f.judge(&f.out, b) {
		if p == nil {
			continue
		}
		if _, err := f.ReadWriteCloser.Write(p); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// Read is for one goroutine.
func (f *faults) Read(b []byte) (int, error) {
	for {
		if p := f.in.again; p != nil {
			f.in.again = nil
			return copy(b, p), nil
		}
		n, err := f.ReadWriteCloser.Read(b)
		if err != nil {
			return n, err
		}
		now := f.judge(&f.in, b[:n])
		rest := now[1]
		if rest == nil {
			rest = now[2]
		}
		f.in.again = rest
		if now[0] != nil {
			return n, nil
		}
	}
}
