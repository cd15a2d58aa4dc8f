package rpctest

import (
	"sync"

	"github.com/rrppcc-go/rrppcc/rpc"
)

// crowdSize is how many goroutines call at once.
const crowdSize = 1000

var crowdTests = []test{
	{"ThousandGoroutinesOnOneSession", nil, func(e *env) {
		ep, s := e.pair()
		e.run(ep)
		crowd(e, ep, []*rpc.Session{s})
	}},
	{"ThousandGoroutinesOnManySessions", nil, func(e *env) {
		srv := e.server(ServerConfig{Endpoints: 2})
		ep := e.client()
		var sessions []*rpc.Session
		for i := range 16 {
			sessions = append(sessions, e.connect(ep, srv.URI(), uint16(i%2+1)))
		}
		e.run(ep)
		crowd(e, ep, sessions)
	}},
	{"ThousandGoroutinesWithoutRun", nil, func(e *env) {
		ep, s := e.pair()
		crowd(e, ep, []*rpc.Session{s})
	}},
}

func crowd(e *env, ep *rpc.Endpoint, sessions []*rpc.Session) {
	var wg sync.WaitGroup
	for i := range crowdSize {
		s := sessions[i%len(sessions)]
		wg.Go(func() {
			size := 40
			if i%20 == 0 {
				size = 6000
			}
			data := random(size, uint32(i))
			for range 2 {
				got, err := e.try(s, ep, TypeReverse, data, size)
				if err != nil || string(got) != string(reversed(data)) {
					e.Errorf("goroutine %d: %v", i, err)
					return
				}
			}
		})
	}
	e.within("the crowd", func() error { wg.Wait(); return nil })
	for _, s := range sessions {
		e.echo(s, ep)
	}
}
