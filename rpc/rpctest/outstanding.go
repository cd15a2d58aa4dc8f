package rpctest

import (
	"bytes"
	"encoding/binary"

	"github.com/rrppcc-go/rrppcc/rpc"
)

var outstandingTests = []test{
	{"HundredsOfRequestsOutstanding", nil, func(e *env) {
		const sessions, most = 4, 256
		srv := e.server(ServerConfig{Window: most / sessions})
		ep := e.client(rpc.WithWindow(most / sessions))
		var all []*rpc.Session
		for range sessions {
			all = append(all, e.connect(ep, srv.URI(), 1))
		}
		total := 0
		for n := 8; n <= most; n *= 2 {
			// With each doubling the round trip gets longer; a timeout that does not
			// follow it has everything sent again, and nothing moves any more.
			before, err := ep.Stats(e.ctx)
			e.must(err)
			rounds := max(16, 256/n)
			e.keepOutstanding(ep, all, n, rounds)
			total += n * rounds
			after, err := ep.Stats(e.ctx)
			e.must(err)
			again := after.Retransmits - before.Retransmits
			e.Logf("%d outstanding: %d requests, %d sent again", n, n*rounds, again)
			if again > uint64(2*n*rounds) { // a stall of the machine costs all that is under way
				e.Errorf("%d outstanding: %d requests, and %d sent again", n, n*rounds, again)
			}
		}
		e.expect(all[0], ep, TypeCount, nil, number(total))
	}},
}

// keepOutstanding has n requests under way at the same time, spread over the
// sessions: each is followed by the next of its chain of that length, when its
// answer is there and right. It drives ep.
func (e *env) keepOutstanding(ep *rpc.Endpoint, sessions []*rpc.Session, n, length int) {
	e.Helper()
	running := n
	for i := range n {
		s, req, resp := sessions[i%len(sessions)], e.data(ep, random(32, uint32(i))), e.buf(ep, 32)
		var next func(k uint32)
		next = func(k uint32) {
			if k == uint32(length) {
				running--
				return
			}
			binary.LittleEndian.PutUint32(req.Bytes(), k)
			s.Enqueue(TypeEcho, req, resp, 0, func(r *rpc.Request) {
				if err := r.Err(); err != nil {
					e.Errorf("chain %d, request %d: %v", i, k, err)
					running--
					return
				}
				if !bytes.Equal(resp.Bytes(), req.Bytes()) {
					e.Errorf("chain %d, request %d: the answer is another's", i, k)
				}
				next(k + 1)
			})
		}
		next(0)
	}
	e.poll(ep, func() bool { return running == 0 })
}
