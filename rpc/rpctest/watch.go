package rpctest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/rpc"
)

// traces is what an endpoint's trace hook has told.
type traces struct {
	mu  sync.Mutex
	all []rpc.Trace
}

func (t *traces) option() rpc.Option {
	return rpc.WithTrace(func(tr *rpc.Trace) {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.all = append(t.all, *tr)
	})
}

// take returns and forgets what was told.
func (t *traces) take() []rpc.Trace {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := t.all
	t.all = nil
	return all
}

var watchTests = []test{
	{"TraceTellsOfEveryRequestOnce", nil, func(e *env) {
		srv := e.server(ServerConfig{})
		var seen traces
		var f rpc.Faults
		ep := e.client(seen.option(), rpc.WithFaults(&f))
		s := e.connect(ep, srv.URI(), 1)
		start := time.Now()
		for i := range 40 {
			n := []int{0, 1, 100, 50_000}[i%4]
			data := random(n, uint32(i))
			e.expect(s, ep, TypeReverse, data, reversed(data))
		}
		for i, tr := range seen.take() {
			n := []int{0, 1, 100, 50_000}[i%4]
			large := n == 50_000
			switch {
			case tr.Session != s || tr.Server || tr.Type != TypeReverse || tr.Err != nil || tr.Seq == 0:
				e.Errorf("request %d: %+v", i, tr)
			case tr.ReqBytes != n || tr.RespBytes != n || tr.ReqLarge != large || tr.RespLarge != large:
				e.Errorf("request %d of %d bytes: %+v", i, n, tr)
			case tr.Waited < 0 || tr.Took < tr.Waited || tr.Begin.Before(start.Add(-time.Second)) || time.Since(tr.Begin) < tr.Took-time.Second:
				e.Errorf("request %d, times: %+v", i, tr)
			case i == 39:
				if text := fmt.Sprint(tr.LogValue()); !strings.Contains(text, "took") || !strings.Contains(text, srv.URI()) {
					e.Errorf("for a log: %s", text)
				}
			}
		}
		f.Drop(1)
		_, err := e.call(s, ep, TypeUnbound, nil, 0)
		if err := s.Call(e.ctx, TypeEcho, e.buf(ep, 5), msgbuf.Buf{}); err == nil {
			e.Error("a response without room for it")
		}
		ctx, cancel := context.WithCancel(e.ctx)
		cancel()
		if cerr := s.Call(ctx, TypeHold, msgbuf.Buf{}, msgbuf.Buf{}); !errors.Is(cerr, context.Canceled) {
			e.Errorf("Call with a cancelled context: %v", cerr)
		}
		all := seen.take()
		if len(all) != 3 || all[0].Err != err || all[0].Resent == 0 || all[0].Type != TypeUnbound {
			e.Fatalf("requests that fail: %+v", all)
		}
		var tooLarge *rpc.ResponseTooLargeError
		if !errors.As(all[1].Err, &tooLarge) || tooLarge.Need != 5 || all[1].RespBytes != 0 {
			e.Errorf("a response without room: %+v", all[1])
		}
		if !errors.Is(all[2].Err, rpc.ErrAborted) {
			e.Errorf("a request that was given up: %+v", all[2])
		}
	}},
	{"TraceOfTheServer", []Capability{LocalPeers}, func(e *env) {
		var seen traces
		srv, cli, connect := e.local(seen.option())
		Bind(srv)
		s := connect()
		for i := range 20 {
			n := []int{0, 20_000}[i%2]
			data := random(n, uint32(i))
			e.expect(s, cli, TypeReverse, data, reversed(data))
		}
		_, err := e.call(s, cli, TypeFail, append(number(7), "no"...), 0)
		all := seen.take()
		if len(all) != 21 {
			e.Fatalf("%d answers were traced", len(all))
		}
		for i, tr := range all[:20] {
			n := []int{0, 20_000}[i%2]
			if !tr.Server || tr.Err != nil || tr.ReqBytes != n || tr.RespBytes != n || tr.ReqLarge != (n > 0) || tr.Waited < 0 || tr.Took < tr.Waited {
				e.Errorf("answer %d: %+v", i, tr)
			}
		}
		var he *rpc.HandlerError
		if last := all[20]; err == nil || !errors.As(last.Err, &he) || he.Code != 7 || last.Session != all[0].Session {
			e.Errorf("an error: %+v", last)
		}
	}},
	{"StatsWithoutDriving", nil, func(e *env) {
		// Whoever reads the counters does not take the loop: no callback runs.
		ep, s := e.pair()
		over := false
		s.Enqueue(TypeEcho, msgbuf.Buf{}, msgbuf.Buf{}, 0, func(*rpc.Request) {
			over = true
			if _, err := ep.Stats(e.ctx); !errors.Is(err, rpc.ErrDeadlock) {
				e.Errorf("Stats in a callback: %v", err)
			}
		})
		for range 10 {
			st, err := ep.Stats(e.ctx)
			e.must(err)
			if over || st.Requests != 1 || st.Responses != 0 || st.Sessions != 1 || st.RingFree == 0 {
				e.Fatalf("%v, over: %v", st, over)
			}
		}
		e.poll(ep, func() bool { return over })
		var got map[string]uint64
		e.must(json.Unmarshal([]byte(ep.Var().String()), &got))
		if got["Responses"] != 1 || got["TxDatagrams"] == 0 || got["DropFault"] != 0 || len(got) < 20 {
			e.Errorf("Var: %v", got)
		}
		e.must(ep.Close())
		if text := ep.Var().String(); text != "null" {
			e.Errorf("Var of a closed endpoint: %s", text)
		}
	}},
	{"LogTellsOfSessions", nil, func(e *env) {
		srv := e.server(ServerConfig{ProcessConfig: mortal})
		var log syncBuffer
		ep := e.endpoint(e.process(mortal), 1, rpc.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
		e.connect(ep, srv.URI(), 1).Close()
		if _, err := ep.Connect(e.ctx, srv.URI(), 77); err == nil {
			e.Fatal("connected to an endpoint that is not there")
		}
		s := e.connect(ep, srv.URI(), 1)
		e.run(ep)
		e.must(srv.Kill())
		select {
		case <-s.Done():
		case <-e.ctx.Done():
			e.Fatal("the session outlives its peer")
		}
		var lines []string
		for _, line := range strings.Split(log.String(), "\n") {
			if strings.Contains(line, "rpc: session ") {
				lines = append(lines, line)
			}
		}
		want := [][]string{
			{"is up", "role=client", srv.URI(), "level=INFO"},
			{"has ended", "session is closed", "level=INFO"},
			{"did not come up", "no such endpoint", "level=INFO"},
			{"is up"},
			{"has ended", "peer is dead", "level=WARN"},
		}
		if len(lines) != len(want) {
			e.Fatalf("%d lines about sessions:\n%s", len(lines), strings.Join(lines, "\n"))
		}
		for i, words := range want {
			for _, w := range words {
				if !strings.Contains(lines[i], w) {
					e.Errorf("line %d does not say %q: %s", i, w, lines[i])
				}
			}
		}
	}},
}

// syncBuffer is a bytes.Buffer for many goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
