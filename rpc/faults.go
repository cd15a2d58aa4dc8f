package rpc

import "sync/atomic"

// Faults makes endpoints fail on purpose, in tests; see WithFaults. Its methods
// may be called from any goroutine at any time. The zero value does nothing. What
// happens when a session manager dies rpctest.Process.Kill shows.
type Faults struct {
	drop    atomic.Int64
	breaks  atomic.Int64
	resolve atomic.Pointer[resolveFault]
}

type resolveFault struct {
	left atomic.Int64
	err  error
}

// Drop has the endpoint throw away the next n datagrams that it receives, on
// top of those that it is to throw away already.
func (f *Faults) Drop(n int) { f.drop.Add(int64(n)) }

// Dropping returns how many datagrams are still to be thrown away.
func (f *Faults) Dropping() int { return int(f.drop.Load()) }

// BreakReads has the RC connection break under the next n RDMA READs that the
// endpoint posts, on top of those that are to break already.
func (f *Faults) BreakReads(n int) { f.breaks.Add(int64(n)) }

// FailResolution has the next n resolutions of a peer's address fail with err,
// at either end of a session. It replaces what was set before.
func (f *Faults) FailResolution(n int, err error) {
	r := &resolveFault{err: err}
	r.left.Store(int64(n))
	f.resolve.Store(r)
}

// WithFaults lets f make the endpoint fail. Several endpoints may share f.
func WithFaults(f *Faults) Option { return func(o *options) { o.faults = f } }

// dropper returns the engine's hook, nil without faults.
func (f *Faults) dropper() func() bool {
	if f == nil {
		return nil
	}
	return func() bool { return takeOne(&f.drop) }
}

// breaker returns the transport's hook, nil without faults.
func (f *Faults) breaker() func() bool {
	if f == nil {
		return nil
	}
	return func() bool { return takeOne(&f.breaks) }
}

// takeOne takes one of what n counts, if there is any.
func takeOne(n *atomic.Int64) bool {
	if n.Load() <= 0 {
		return false
	}
	if n.Add(-1) < 0 { // another endpoint was faster
		n.Add(1)
		return false
	}
	return true
}

// resolution returns the error that the next resolution is to fail with.
func (f *Faults) resolution() error {
	if f == nil {
		return nil
	}
	if r := f.resolve.Load(); r != nil && r.left.Load() > 0 && r.left.Add(-1) >= 0 {
		return r.err
	}
	return nil
}
