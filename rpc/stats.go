package rpc

import (
	"context"
	"fmt"
	"reflect"
	"strings"

	"github.com/rrppcc-go/rrppcc/rpc/internal/engine"
)

// Stats are an endpoint's counters; they only grow. The embedded ones are, in
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
}

// Stats returns the endpoint's counters. It waits for the loop, at most until
// ctx ends.
func (ep *Endpoint) Stats(ctx context.Context) (Stats, error) {
	var st Stats
	err := ep.onOwner(ctx, func() {
		st = Stats{Stats: ep.e.Stats, RecvErrors: ep.t.RecvErrors, SendErrors: ep.t.SendErrors, Chunks: ep.t.Chunks, Repairs: ep.repairs}
	})
	return st, err
}

// String lists the counters that are not 0, as "name=value" in the order of the
// fields.
func (s Stats) String() string {
	var b strings.Builder
	writeCounters(&b, reflect.ValueOf(s))
	return b.String()
}

func writeCounters(b *strings.Builder, v reflect.Value) {
	for i := range v.NumField() {
		f := v.Field(i)
		if f.Kind() == reflect.Struct {
			writeCounters(b, f)
			continue
		}
		if n := f.Uint(); n != 0 {
			if b.Len() > 0 {
				b.WriteByte(' ')
			}
			fmt.Fprintf(b, "%s=%d", v.Type().Field(i).Name, n)
		}
	}
}
