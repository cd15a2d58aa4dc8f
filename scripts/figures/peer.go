package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"time"

	_ "github.com/rrppcc-go/rrppcc/mlx5" // its provider
	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/nexus"
	"github.com/rrppcc-go/rrppcc/rpc"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// peerMain is the other process: it reads its job, answers where it is, and does
// the job until its input ends.
func peerMain(in io.Reader, out io.Writer) error {
	r := bufio.NewReader(in)
	j, err := receive(r)
	if err != nil {
		return err
	}
	if j.Kind == jobRPC {
		return rpcPeer(j, r, out)
	}
	e, err := newEnd(j.Device, j.service())
	if err != nil {
		return err
	}
	err = e.connect(j)
	if err == nil {
		err = send(out, e.self(j.Kind))
	}
	if err == nil {
		err = e.serve(j, r)
	}
	return errors.Join(err, e.close())
}

func (e *end) serve(j job, in io.Reader) error {
	switch j.Kind {
	case jobUDLatency, jobRCLatency:
		for range j.Count {
			if err := e.pong(); err != nil {
				return err
			}
			if err := e.ping(); err != nil {
				return err
			}
		}
	case jobUDRate, jobRCRate:
		over := make(chan error, 1)
		go func() { over <- drain(in) }()
		return e.swallow(over)
	}
	return drain(in)
}

func drain(in io.Reader) error {
	_, err := io.Copy(io.Discard, in)
	return err
}

// swallow receives until it is over.
func (e *end) swallow(over <-chan error) error {
	again := make([]uverbs.RecvWR, 0, depth)
	for empty := 0; ; {
		n, err := e.recvCQ.Poll(e.wc)
		if err != nil {
			return err
		}
		if n == 0 {
			if empty++; empty%10_000 == 0 {
				select {
				case err := <-over:
					return err
				default:
					runtime.Gosched()
				}
			}
			continue
		}
		again = again[:0]
		for _, wc := range e.wc[:n] {
			if wc.Status != uverbs.WCSuccess {
				return errors.New("a receive completed with " + wc.Status.String())
			}
			again = append(again, e.recvs[wc.WRID])
		}
		if _, err := e.qp.PostRecv(again); err != nil {
			return err
		}
	}
}

// process is one with an RPC endpoint.
type process struct {
	nx  *nexus.Nexus
	ctx *uverbs.Context
	ep  *rpc.Endpoint
}

func newProcess(device string, opts ...rpc.Option) (p *process, err error) {
	p = new(process)
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	dev, err := uverbs.DeviceByName(device)
	if err != nil {
		return nil, err
	}
	if p.ctx, err = dev.Open(); err != nil {
		return nil, err
	}
	if p.nx, err = nexus.New("127.0.0.1:0", nexus.WithHeartbeat(0, 5*time.Second)); err != nil {
		return nil, err
	}
	p.ep, err = rpc.NewEndpoint(p.nx, 1, p.ctx, opts...)
	return p, err
}

func (p *process) close() error {
	var errs []error
	if p.ep != nil {
		errs = append(errs, p.ep.Close())
	}
	if p.nx != nil {
		errs = append(errs, p.nx.Close())
	}
	if p.ctx != nil {
		errs = append(errs, p.ctx.Close())
	}
	return errors.Join(errs...)
}

// Request types of the RPC server.
const (
	typeEcho   = 1 // answered with the request
	typeLength = 2 // answered with 8 bytes, whatever came
)

// rpcPeer serves RPCs.
func rpcPeer(j job, in io.Reader, out io.Writer) error {
	var opts []rpc.Option
	if j.Credits != 0 {
		opts = append(opts, rpc.WithCredits(j.Credits))
	}
	p, err := newProcess(j.Device, opts...)
	if err != nil {
		return err
	}
	p.ep.Handle(typeEcho, func(h *rpc.RequestHandle) (msgbuf.Buf, error) {
		resp, err := h.Response(len(h.Bytes()))
		if err == nil {
			copy(resp.Bytes(), h.Bytes())
		}
		return resp, err
	})
	p.ep.Handle(typeLength, func(h *rpc.RequestHandle) (msgbuf.Buf, error) {
		resp, err := h.Response(8)
		if err == nil {
			binary.LittleEndian.PutUint64(resp.Bytes(), uint64(len(h.Bytes())))
		}
		return resp, err
	})
	over := make(chan error, 1)
	if err = send(out, job{Kind: jobRPC, URI: p.nx.URI()}); err == nil {
		go func() { over <- drain(in) }()
		err = pollUntil(p.ep, over)
	}
	return errors.Join(err, p.close())
}

// pollUntil drives ep without a pause until it is over.
func pollUntil(ep *rpc.Endpoint, over <-chan error) error {
	for i := 1; ; i++ {
		ep.Poll()
		if i%10_000 != 0 {
			continue
		}
		select {
		case err := <-over:
			return err
		default:
			runtime.Gosched()
		}
	}
}
