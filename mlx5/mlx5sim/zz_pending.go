package mlx5sim

// Temporary definitions for what is still being written. Remove an entry when
// the real one arrives.

type requester struct{}
type responder struct{}

// wireSend hands op to the wire. False: the wire cannot take it now and calls
// resumeSQ later (never from within wireSend). An RC op is completed in order by
// completeSend or failSend; a UD op before wireSend returns true. The op is only
// valid during the call: keep a copy with copyFrom.
func (q *qp) wireSend(op *sendOp) bool { return false }

// wireReset forgets what the wire has in flight for q, without completing it.
func (q *qp) wireReset() {}
