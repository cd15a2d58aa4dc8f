package rpctest

import (
	"container/heap"
	"math/rand/v2"
)

// vtime is a simulation's virtual time and what is to happen in it, in order.
type vtime struct {
	now    int64 // ns
	rng    *rand.Rand
	events eventHeap
	order  uint64
}

type vevent struct {
	at    int64
	order uint64
	fn    func()
}

type eventHeap []vevent

func (h eventHeap) Len() int { return len(h) }
func (h eventHeap) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].order < h[j].order
}
func (h eventHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *eventHeap) Push(x any)   { *h = append(*h, x.(vevent)) }
func (h *eventHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = vevent{}
	*h = old[:len(old)-1]
	return e
}

// at runs fn at time t, or now if that is over.
func (v *vtime) at(t int64, fn func()) {
	v.order++
	heap.Push(&v.events, vevent{max(t, v.now), v.order, fn})
}

// until runs what happens up to time t.
func (v *vtime) until(t int64) {
	for len(v.events) > 0 && v.events[0].at <= t {
		e := heap.Pop(&v.events).(vevent)
		v.now = e.at
		e.fn()
	}
	v.now = t
}

// jitter returns a duration of less than d.
func (v *vtime) jitter(d int64) int64 { return v.rng.Int64N(max(d, 1)) }

// port is a transmitter with a queue in front of it, of a NIC or a switch: first
// in first out, and what does not fit into the buffer is dropped.
type port struct {
	v      *vtime
	rate   float64 // ns per byte
	buffer int     // bytes; 0 is no limit
	free   int64   // when what is queued has been sent
	drops  uint64
	sent   uint64 // bytes
}

// queued returns how many bytes wait or are being sent.
func (p *port) queued() int { return int(float64(max(p.free-p.v.now, 0)) / p.rate) }

// send queues n bytes, and runs fn when the last of them has left, delay later.
// It reports false if they were dropped.
func (p *port) send(n int, delay int64, fn func()) bool {
	if p.buffer > 0 && p.queued()+n > p.buffer {
		p.drops++
		return false
	}
	p.sent += uint64(n)
	p.free = max(p.free, p.v.now) + int64(float64(n)*p.rate)
	p.v.at(p.free+delay, fn)
	return true
}
