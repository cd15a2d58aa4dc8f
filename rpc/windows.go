package rpc

import (
	"time"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

const (
	// startWindows is how many memory windows an endpoint has from the start;
	// more come as they are needed, as many as requests can be under way.
	startWindows = 16
	// growPause is how long an endpoint goes on with the windows that it has
	// when the device gives no more.
	growPause = time.Second
)

// WithRegionKeys offers large messages by the rkeys of the regions that they
// lie in, not by memory windows. That saves two work requests per large message,
// and lets every peer read all memory for large messages: see "What peers can
// read". On the simulated ConnectX, a request of 16 KiB and its short response took
// 4.7 us without windows and 6.3 us with them in one process, and between
// processes no difference was seen. The two ends need not agree.
func WithRegionKeys() Option { return func(o *options) { o.regionKeys = true } }

// MemoryWindows reports whether the endpoint's peers can read the large messages
// that are offered to them alone, by memory windows. It is false with
// WithRegionKeys, and on devices without windows of type 2 that are enforced.
func (ep *Endpoint) MemoryWindows() bool { return ep.reg.windows }

// useWindows decides by what large messages are offered.
func (ep *Endpoint) useWindows(dev *uverbs.DeviceAttr) bool {
	const need = uverbs.CapMemWindowType2B | uverbs.CapMemMgtExtensions
	why := ""
	switch {
	case ep.opt.regionKeys:
		return false
	case ep.ctx.Device().Driver() == "rdma_rxe":
		// Its windows let a peer read their whole region (rxe up to Linux 6.12).
		why = "Soft-RoCE does not check their bounds"
	case dev.Caps&need != need:
		why = "the device has none of type 2"
	default:
		return true
	}
	ep.log.Info("rpc: no memory windows: peers can read all memory for large messages", "endpoint", ep.id, "device", ep.ctx.Device().Name(), "why", why)
	return false
}

func (ep *Endpoint) firstWindows() int {
	if ep.reg.windows {
		return min(startWindows, ep.opt.ringDepth)
	}
	return 0
}

// growWindows allocates n windows more, beside the loop: it is a matter of the
// kernel. It runs in the loop.
func (ep *Endpoint) growWindows(n int) {
	ep.mu.Lock()
	defer ep.mu.Unlock()
	if ep.growing || ep.closing {
		return
	}
	ep.growing = true
	ep.connecting.Add(1)
	go func() {
		defer ep.connecting.Done()
		mws, err := ep.t.NewWindows(n)
		if err != nil {
			ep.log.Warn("rpc: allocate memory windows; large messages wait for each other", "endpoint", ep.id, "error", err)
		}
		took := ep.submit(op{kind: opFunc, fn: func() {
			ep.t.AddWindows(mws)
			if err == nil {
				ep.growing = false
			}
		}})
		if !took {
			for _, mw := range mws {
				mw.Close()
			}
		}
		if err != nil {
			time.AfterFunc(growPause, func() { ep.submit(op{kind: opFunc, fn: func() { ep.growing = false }}) })
		}
	}()
}
