package rpc

import (
	"context"
	"fmt"
	"iter"
	"reflect"
	"strings"
	"time"

	"github.com/rrppcc-go/rrppcc/rpc/internal/engine"
)

// Stats are an endpoint's counters, which only grow. The embedded ones are, in
// datagrams unless they say otherwise:
//
//   - TxDatagrams, RxDatagrams: handed to the device; received, good or bad
//   - TxBytes, RxBytes: payload of these, bytes
//   - Reads, ReadBytes: large messages pulled, and their bytes
//   - Requests: requests begun as a client; each ends in Responses or Failed
//   - Responses, Failed: requests ended with a response; with an error
//   - Handled: requests given to a handler
//   - Assembled: messages received in several datagrams
//   - Retransmits: sent again, by either side
//   - Duplicates: requests and responses that had come before
//   - DropShort, DropVersion: without a header; of an unknown version or kind
//   - DropSession: for a session that does not exist, or no more
//   - DropToken: with a wrong session token, or from another queue pair than
//     the session's peer
//   - DropStale: requests that are older than what their slot has seen
//   - DropBusy: requests for a slot whose request before is still with its
//     handler
//   - DropMalformed: contradict themselves or the protocol
//   - DropFault: thrown away by Faults
//   - Paced: requests of congested sessions, sent at their pace
//   - Congested: times that a session began to be paced
//   - Losses: requests of congestion-controlled sessions that were lost, or
//     their answers were, by the word of the answer that came in the end
//
// What a full receive ring or the network loses is counted by nobody here: it
// shows as Retransmits.
type Stats struct {
	engine.Stats
	RecvErrors uint64 // failed receive completions
	SendErrors uint64 // failed send and READ completions
	Chunks     uint64 // RDMA READs posted: large messages go in several
	Repairs    uint64 // RC connections that broke and were re-established

	// What there is now.
	Sessions uint64 // both ends, connecting ones and lanes included
	RingFree uint64 // receive buffers that no session has
}

// Stats returns the endpoint's counters. It waits for the loop to come to the end
// of its turn, at most until ctx ends, and takes no turn itself. It must not be
// called from a handler or callback (ErrDeadlock).
func (ep *Endpoint) Stats(ctx context.Context) (st Stats, err error) {
	read := func() {
		st = Stats{Stats: ep.e.Stats, RecvErrors: ep.t.RecvErrors, SendErrors: ep.t.SendErrors, Chunks: ep.t.Chunks, Repairs: ep.repairs}
	}
	if ep.tryOwn() {
		read()
		ep.disown()
	} else if onLoop() {
		return Stats{}, ErrDeadlock
	} else if err := ep.inLoop(ctx, read); err != nil {
		return Stats{}, err
	}
	ep.mu.Lock()
	defer ep.mu.Unlock()
	st.Sessions, st.RingFree = uint64(len(ep.sessions)), uint64(ep.ringFree)
	return st, nil
}

// Var returns the endpoint's counters as an expvar.Var: a JSON object of Stats by
// the names of its fields, or null where they cannot be had within a second.
//
//	expvar.Publish("rrpc", ep.Var())
func (ep *Endpoint) Var() fmt.Stringer { return statsVar{ep} }

type statsVar struct{ ep *Endpoint }

func (v statsVar) String() string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	st, err := v.ep.Stats(ctx)
	if err != nil {
		return "null"
	}
	var b strings.Builder
	for name, n := range st.All() {
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%q:%d", name, n)
	}
	return "{" + b.String() + "}"
}

// String lists the counters that are not 0, as "name=value" in the order of the
// fields.
func (s Stats) String() string {
	var b strings.Builder
	for name, n := range s.All() {
		if n == 0 {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%s=%d", name, n)
	}
	return b.String()
}

// All yields the counters by the names of their fields, in their order.
func (s Stats) All() iter.Seq2[string, uint64] {
	return func(yield func(string, uint64) bool) { counters(reflect.ValueOf(s), yield) }
}

func counters(v reflect.Value, yield func(string, uint64) bool) bool {
	for i := range v.NumField() {
		f := v.Field(i)
		if f.Kind() == reflect.Struct {
			if !counters(f, yield) {
				return false
			}
		} else if !yield(v.Type().Field(i).Name, f.Uint()) {
			return false
		}
	}
	return true
}
