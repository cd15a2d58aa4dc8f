package rpctest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rrppcc-go/rrppcc/internal/leakcheck"
	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/rpc"
)

// Kills kills processes (SIGKILL) in the middle of calls, n times each: servers
// and clients, in small and in large calls. Each time the survivor must report
// that the peer is dead, fail all that was under way, keep nothing, and go on with
// the process that takes the dead one's place.
//
// The backend says on what device the processes are: that of [TwoProcesses], or
// of [Device].
func Kills(t *testing.T, b Backend, n int) {
	t.Run(b.Name(), func(t *testing.T) {
		for _, victim := range []struct {
			name string
			run  func(k *kills)
		}{{"Server", killServers}, {"Client", killClients}} {
			for _, call := range []struct {
				name string
				size int
			}{{"SmallCalls", 32}, {"LargeCalls", 100_000}} {
				t.Run(victim.name+"In"+call.name, func(t *testing.T) {
					leakcheck.Check(t)
					ctx, cancel := context.WithTimeout(t.Context(), patience+time.Duration(n)*killTime)
					defer cancel()
					k := &kills{env: env{T: t, b: b, ctx: ctx}, size: call.size}
					if d, ok := b.(*deviceBackend); ok {
						k.device = d.server.Name()
					}
					k.left.Store(int64(n))
					victim.run(k)
					if len(k.noticed) != n {
						t.Errorf("%d deaths were noticed, want %d", len(k.noticed), n)
						return
					}
					slices.Sort(k.noticed)
					t.Logf("%d kills, noticed after %v to %v, median %v; peers are dead after %v of silence", n,
						k.noticed[0].Round(time.Millisecond), k.noticed[n-1].Round(time.Millisecond), k.noticed[n/2].Round(time.Millisecond), mortal.DeadAfter)
				})
			}
		}
	})
}

const (
	// victimsAtOnce is how many processes live, and die, at the same time.
	victimsAtOnce = 4
	// noticedWithin is when a survivor must know, on the slowest of machines.
	noticedWithin = 10 * time.Second
	// killTime bounds one kill, on an emulated machine.
	killTime = 10 * time.Second
	// survived is the request type of survivors that are servers.
	survived = 100
	// creditsOfSession is rpc's default.
	creditsOfSession = 32
)

// kills is a test in which processes are killed.
type kills struct {
	env
	device string // of the processes; empty: simulated ones
	size   int    // of requests and responses
	left   atomic.Int64

	mu      sync.Mutex
	noticed []time.Duration // from the kill to the end of the session
}

// forEach runs a victim's life in victimsAtOnce goroutines.
func (k *kills) forEach(live func(i int) error) {
	var wg sync.WaitGroup
	for i := range victimsAtOnce {
		wg.Go(func() {
			if err := live(i); err != nil {
				k.Error(err)
			}
		})
	}
	wg.Wait()
}

// one says whether another process is to be killed.
func (k *kills) one() bool { return k.left.Add(-1) >= 0 }

// kill kills a process, and waits until the survivor's session with it has ended
// as it should.
func (k *kills) kill(p *process, s *rpc.Session) error {
	at := time.Now()
	if err := p.Kill(); err != nil {
		return err
	}
	select {
	case <-s.Done():
	case <-k.ctx.Done():
		return errors.New("a session outlives its peer")
	}
	took := time.Since(at)
	if took > noticedWithin {
		return fmt.Errorf("a death was noticed after %v", took)
	}
	if !errors.Is(s.Err(), rpc.ErrPeerDead) {
		return fmt.Errorf("the session with a dead peer ended with %w", s.Err())
	}
	k.mu.Lock()
	k.noticed = append(k.noticed, took)
	k.mu.Unlock()
	return p.Close()
}

// strike is after how many calls a process is killed.
func strike() int64 { return 1 + rand.Int64N(60) }

// killServers has a client survive its servers.
func killServers(k *kills) {
	ep := k.endpoint(k.process(mortal), 1)
	k.run(ep)
	k.forEach(func(int) error {
		r := role{Server: ServerConfig{ProcessConfig: reborn()}, Device: k.device}
		for {
			p, err := start(r)
			if err != nil {
				return err
			}
			s, err := ep.Connect(k.ctx, p.URI(), 1)
			if err != nil {
				return errors.Join(err, p.Close())
			}
			again := k.one()
			if err := k.outlive(p, s, again); err != nil || !again {
				return errors.Join(err, s.Close(), p.Close())
			}
			if err := s.Close(); err != nil {
				return err
			}
			// The next one is born where this one died.
			r.Server.URI, r.Server.Rebind = p.URI(), 10*time.Second
		}
	})
}

// outlive calls a server, which is killed meanwhile or only does its work.
func (k *kills) outlive(p *process, s *rpc.Session, die bool) error {
	calls, at := atomic.Int64{}, strike()
	killed := make(chan error, 1)
	c := caller{Type: TypeReverse, Size: k.size}
	err := c.call(s, func() bool {
		n := calls.Add(1)
		if die && n == at {
			go func() { killed <- k.kill(p, s) }() // the others go on calling
		}
		return die || n < at
	})
	if !die {
		return err
	}
	if calls.Load() < at {
		return fmt.Errorf("calls ended before the server did: %w", err)
	}
	// Every single call must end with it. Of a dying process the kernel may take
	// the memory before the queue pairs: then a READ is told that there is none.
	for _, one := range err.(interface{ Unwrap() []error }).Unwrap() {
		if !errors.Is(one, rpc.ErrPeerDead) && !errors.Is(one, rpc.ErrReadFailed) {
			return errors.Join(fmt.Errorf("a call to a dead server ended with %w", one), <-killed)
		}
	}
	return <-killed
}

// killClients has a server survive its clients. Its ring has room for no more
// sessions than there are clients at a time: a client that takes a dead one's
// place gets in when the survivor has forgotten that.
func killClients(k *kills) {
	w := new(watcher)
	p := k.process(mortal)
	ep, err := rpc.NewEndpoint(p.Nexus, 1, p.Verbs, rpc.WithLogger(slog.New(w)), rpc.WithRingDepth(creditsOfSession*victimsAtOnce))
	k.must(err)
	k.Cleanup(func() {
		k.within("close the endpoint", ep.Close)
		if err := w.err(); err != nil {
			k.Error(err)
		}
	})
	var victims [victimsAtOnce]struct {
		calls, at atomic.Int64
		struck    chan *rpc.Session
	}
	for i := range victims {
		victims[i].struck = make(chan *rpc.Session, 1)
	}
	ep.Handle(survived, func(h *rpc.RequestHandle) (msgbuf.Buf, error) {
		v := &victims[binary.LittleEndian.Uint32(h.Bytes())]
		if v.calls.Add(1) == v.at.Load() {
			v.struck <- h.Session()
		}
		return respond(h, reversed(h.Bytes()))
	})
	k.run(ep)
	k.forEach(func(i int) error {
		v := &victims[i]
		for {
			v.at.Store(strike())
			v.calls.Store(0)
			p, err := start(role{Device: k.device, Caller: &caller{Process: mortal, URI: ep.URI(), Type: survived, Size: k.size, Tag: uint32(i)}})
			if err != nil {
				return err
			}
			var s *rpc.Session
			select {
			case s = <-v.struck:
			case <-k.ctx.Done():
				return errors.Join(errors.New("a client does not call"), p.Kill(), p.Close())
			}
			if !k.one() {
				return p.Close()
			}
			if err := k.kill(p, s); err != nil {
				return err
			}
		}
	})
}
