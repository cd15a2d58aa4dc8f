package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/rpc"
)

// Endpoints of the server process.
const (
	frontID = 1 // what clients talk to
	backID  = 2 // what front asks
)

// Request types of hello.
const (
	typeHello  = 1 // 16 bytes; answered in 16 bytes
	typeUpload = 2 // any bytes; answered with their CRC-32C, 4 bytes
	typeFetch  = 3 // seed and length, 4 bytes each; answered with that many bytes of the pattern
	typeNested = 4 // to front: passed on to back as typeMirror, whose answer is returned
	typeMirror = 5 // to back: answered with the bytes in reverse
)

const maxLarge = 1 << 30

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// helloAnswer is the answer to typeHello, 16 bytes.
const helloAnswer = "hello to you too"

// runServer serves until ctx ends, or with --until-eof until stdin does.
func (f *helloFlags) runServer(ctx context.Context, stdin io.Reader, stdout io.Writer, log *slog.Logger) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	dev, err := f.open(addressOf(f.serve))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	fmt.Fprintf(stdout, "%s%v: %s\n", deviceLine, dev, dev.why)

	nx, err := f.nexus(f.serve, log)
	if err != nil {
		return err
	}
	defer nx.Close()
	opts := []rpc.Option{rpc.WithPort(uint8(f.port)), rpc.WithGIDIndex(f.gid), rpc.WithLogger(log)}
	back, err := rpc.NewEndpoint(nx, backID, dev.ctx, opts...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, back.Close()) }()
	front, err := rpc.NewEndpoint(nx, frontID, dev.ctx, opts...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, front.Close()) }()

	back.Handle(typeMirror, mirror)
	stopped := make(chan error, 2)
	go func() { stopped <- back.Run(ctx) }()
	// Front is driven by its own Connect until Run takes over.
	toBack, err := front.Connect(ctx, nx.URI(), backID)
	if err != nil {
		return err
	}
	front.Handle(typeHello, greet)
	front.Handle(typeUpload, upload)
	front.Handle(typeFetch, fetch)
	front.Handle(typeNested, forwardTo(toBack))
	go func() { stopped <- front.Run(ctx) }()

	if f.child {
		go func() {
			io.Copy(io.Discard, stdin)
			cancel()
		}()
	}
	fmt.Fprintf(stdout, "%s%s\n", readyLine, nx.URI())
	if !f.child {
		fmt.Fprintf(stdout, "process %d serves until it is interrupted; the other half: rrpc hello --connect %s\n", os.Getpid(), nx.URI())
	}
	// Closing the endpoints needs their loops or none: both have ended then.
	return errors.Join(<-stopped, end(cancel, stopped))
}

// end stops what still runs and waits for it.
func end(cancel context.CancelFunc, stopped <-chan error) error {
	cancel()
	return <-stopped
}

func greet(h *rpc.RequestHandle) (msgbuf.Buf, error) {
	resp, err := h.Response(len(helloAnswer))
	if err != nil {
		return resp, err
	}
	copy(resp.Bytes(), helloAnswer)
	return resp, nil
}

func upload(h *rpc.RequestHandle) (msgbuf.Buf, error) {
	resp, err := h.Response(4)
	if err != nil {
		return resp, err
	}
	binary.BigEndian.PutUint32(resp.Bytes(), crc32.Checksum(h.Bytes(), castagnoli))
	return resp, nil
}

func fetch(h *rpc.RequestHandle) (msgbuf.Buf, error) {
	if len(h.Bytes()) != 8 {
		return msgbuf.Buf{}, fmt.Errorf("request of %d bytes, want 8", len(h.Bytes()))
	}
	seed, n := binary.BigEndian.Uint32(h.Bytes()), binary.BigEndian.Uint32(h.Bytes()[4:])
	if n > maxLarge {
		return msgbuf.Buf{}, fmt.Errorf("%d bytes are too many", n)
	}
	resp, err := h.Response(int(n))
	if err != nil {
		return resp, err
	}
	pattern(resp.Bytes(), seed)
	return resp, nil
}

func mirror(h *rpc.RequestHandle) (msgbuf.Buf, error) {
	in := h.Bytes()
	resp, err := h.Response(len(in))
	if err != nil {
		return resp, err
	}
	for i, b := range in {
		resp.Bytes()[len(in)-1-i] = b
	}
	return resp, nil
}

// forwardTo passes a request on and answers with the answer.
func forwardTo(back *rpc.Session) rpc.Handler {
	return func(h *rpc.RequestHandle) (msgbuf.Buf, error) {
		ep := h.Endpoint()
		n := len(h.Bytes())
		req, err := ep.Alloc(n)
		if err != nil {
			return msgbuf.Buf{}, err
		}
		resp, err := ep.Alloc(n)
		if err != nil {
			req.Free()
			return msgbuf.Buf{}, err
		}
		copy(req.Bytes(), h.Bytes())
		back.Enqueue(typeMirror, req, resp, 0, func(r *rpc.Request) {
			req.Free()
			if err := r.Err(); err != nil {
				resp.Free()
				h.Fail(err)
				return
			}
			h.Reply(resp)
		})
		return h.Defer()
	}
}

// pattern fills b with bytes that follow from seed: a 32-bit xorshift.
func pattern(b []byte, seed uint32) {
	x := seed | 1
	for len(b) >= 4 {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		binary.BigEndian.PutUint32(b, x)
		b = b[4:]
	}
	for i := range b {
		b[i] = byte(x >> (8 * i))
	}
}
