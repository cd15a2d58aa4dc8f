package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/rpc"
)

// load keeps requests under way.
type load struct {
	ep       *rpc.Endpoint
	s        *rpc.Session
	typ      uint8
	req      msgbuf.Buf
	resps    []msgbuf.Buf
	left     int // still to be started
	underWay int
	err      error
	done     func(*rpc.Request)
}

// withLoad makes a client of a server in another process and lets fn use it.
func withLoad(m *machine, typ uint8, reqBytes, respBytes, underWay int, fn func(*load) error) error {
	return withLoadOf(m, 0, typ, func(*rpc.Endpoint) int { return reqBytes }, respBytes, underWay, fn)
}

// withLoadOf is withLoad with so many credits at the server, unless 0, and options
// of the client; length says how long the requests are.
func withLoadOf(m *machine, credits int, typ uint8, length func(*rpc.Endpoint) int, respBytes, underWay int, fn func(*load) error, opts ...rpc.Option) (err error) {
	c, err := newProcess(m.device, opts...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	p, server, err := startPeer(m, job{Kind: jobRPC, Credits: credits})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.end()) }()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	l := &load{ep: c.ep, typ: typ}
	if l.s, err = c.ep.Connect(ctx, server.URI, 1); err != nil {
		return err
	}
	if l.req, err = c.ep.Alloc(length(c.ep)); err != nil {
		return err
	}
	defer l.req.Free()
	for i := range l.req.Bytes() {
		l.req.Bytes()[i] = byte(i) // memory that was never written is no memory yet
	}
	for range underWay {
		resp, err := c.ep.Alloc(respBytes)
		if err != nil {
			return err
		}
		defer resp.Free()
		l.resps = append(l.resps, resp)
	}
	l.done = func(r *rpc.Request) {
		l.underWay--
		l.err = errors.Join(l.err, r.Err())
		if l.left > 0 && l.err == nil {
			l.start(r.Tag())
		}
	}
	return fn(l)
}

func (l *load) start(tag uint64) {
	l.left--
	l.underWay++
	l.s.Enqueue(l.typ, l.req, l.resps[tag], tag, l.done)
}

// run makes n requests. The requests' own deadlines end it.
func (l *load) run(n int) error {
	l.left = n
	for tag := 0; tag < len(l.resps) && l.left > 0; tag++ {
		l.start(uint64(tag))
	}
	for l.underWay > 0 {
		l.ep.Poll()
	}
	return l.err
}

// rate is how many requests there are in a second.
func (l *load) rate(warmUp, n int) (float64, error) {
	if err := l.run(warmUp); err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := l.run(n); err != nil {
		return 0, err
	}
	return float64(n) / time.Since(begin).Seconds(), nil
}

// rpcLatency is the median in microseconds, there and back.
func rpcLatency(m *machine) (us float64, err error) {
	const rounds = 1000
	err = withLoad(m, typeEcho, rpcBytes, rpcBytes, 1, func(l *load) error {
		if err := l.run(warmUp); err != nil {
			return err
		}
		took := make([]time.Duration, rounds)
		for i := range took {
			begin := time.Now()
			if err := l.run(1); err != nil {
				return fmt.Errorf("round %d: %w", i, err)
			}
			took[i] = time.Since(begin)
		}
		slices.Sort(took)
		us = float64(took[rounds/2].Nanoseconds()) / 1000
		return nil
	})
	return us, err
}

// rpcRate is thousands of requests per second.
func rpcRate(m *machine) (rate float64, err error) {
	err = withLoad(m, typeEcho, rpcBytes, rpcBytes, 32, func(l *load) error {
		rate, err = l.rate(1000, 10_000)
		return err
	})
	return rate / 1000, err
}

// rpcLarge is MiB per second of requests of 1 MiB each.
func rpcLarge(m *machine) (rate float64, err error) {
	err = withLoad(m, typeLength, 1<<20, 8, 4, func(l *load) error {
		rate, err = l.rate(4, 40)
		return err
	})
	return rate, err
}
